"""y = x ∘ W + residual: the Add behind a layer, of another value of its shape."""

from collections.abc import Mapping
from dataclasses import replace

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import SparseOperator


def add_residual(
    graph: Graph, operator: SparseOperator, shapes: Mapping[str, tuple[int, ...]]
) -> SparseOperator | None:
    """The operator with a residual; None where there is none, or it would have to be broadcast.

    Args:
        graph: Where it stands.
        operator: Its output so far.
        shapes: Of the values, at a batch that is not 1: a shape of 1 would be broadcast elsewhere.
    """
    position = graph.only_user(operator.y)
    if operator.residual or not operator.is_open or not graph.is_operator(position, "Add"):
        return None
    node = graph.nodes[position]
    residual = node.input[1] if node.input[0] == operator.y else node.input[0]
    if graph.constant(residual) is not None:
        return None
    if residual not in shapes or shapes[residual] != shapes.get(node.output[0]):
        return None
    nodes = (*operator.nodes, position)
    return replace(operator, nodes=nodes, y=node.output[0], residual=residual)
