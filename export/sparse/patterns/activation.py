"""y = relu(z) and y = clip(z): the activations of one node."""

from dataclasses import replace

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import SparseOperator

_LARGEST = 3.4028234663852886e38


def add_activation(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the Relu or Clip after it; None if there is none."""
    position = graph.only_user(operator.y)
    if not operator.can_fuse or not graph.is_operator(position, "Relu", "Clip"):
        return None
    node = graph.nodes[position]
    nodes, y = (*operator.nodes, position), node.output[0]
    if node.op_type == "Relu":
        return replace(operator, nodes=nodes, y=y, activation="relu")
    clip = bounds(graph, position)
    if clip is None:
        return None
    return replace(operator, nodes=nodes, y=y, activation="clip", clip=clip)


def bounds(graph: Graph, position: int) -> tuple[float, float] | None:
    """Return the bounds of a Relu or Clip; None if they are not constant, or not a range.

    A Clip's bounds may be NaN, or the lower one above the upper: no kernel computes its result.
    """
    node = graph.nodes[position]
    if node.op_type == "Relu":
        return 0.0, _LARGEST
    given = attributes(node)  # before opset 11
    found = []
    for place, key, default in ((1, "min", -_LARGEST), (2, "max", _LARGEST)):
        bound = given.get(key, default)
        if len(node.input) > place and node.input[place]:
            bound = graph.scalar(node.input[place])
        found.append(bound)
    return (found[0], found[1]) if None not in found and found[0] <= found[1] else None
