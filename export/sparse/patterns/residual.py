"""y = x ∘ W + residual: the Add after a layer, of another value of its shape."""

from collections.abc import Mapping
from dataclasses import replace

from mfac_compress.export.sparse.graph import Graph, is_elementwise, is_operator, only_user
from mfac_compress.export.sparse.operator import SparseOperator


def add_residual(
    graph: Graph, operator: SparseOperator, shapes: Mapping[str, tuple[int, ...]]
) -> SparseOperator | None:
    """Return the operator with a residual; None if there is none, or it needs broadcasting.

    Args:
        graph: The graph of the operator.
        operator: The operator to extend.
        shapes: Shapes of the values at a batch size other than 1, at which a value that is
            broadcast over the batch would look like any other.
    """
    node = only_user(operator.y)
    if operator.residual or not is_operator(node, "Add"):
        return None
    residual = node.inputs[1] if node.inputs[0] is operator.y else node.inputs[0]
    if graph.constant(residual) is not None:
        return None
    if not is_elementwise(node, shapes):
        return None
    return replace(operator, nodes=(*operator.nodes, node), residual=residual)
