"""y = x ∘ W + residual: the Add after a layer, of another value of its shape."""

from collections.abc import Mapping
from dataclasses import replace

from mfac_compress.export.sparse.graph import Graph
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
    position = graph.only_user(operator.y)
    if operator.residual or not operator.can_fuse or not graph.is_operator(position, "Add"):
        return None
    node = graph.nodes[position]
    residual = node.input[1] if node.input[0] == operator.y else node.input[0]
    if graph.constant(residual) is not None:
        return None
    if residual not in shapes or shapes[residual] != shapes.get(node.output[0]):
        return None
    nodes = (*operator.nodes, position)
    return replace(operator, nodes=nodes, y=node.output[0], residual=residual)
