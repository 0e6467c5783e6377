"""y = relu(z) and y = clip(z): the activations of one node."""

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, attributes, is_operator, only_user
from mfac_compress.export.sparse.nodes import Activation
from mfac_compress.export.sparse.operator import SparseOperator

_LARGEST = 3.4028234663852886e38


def add_activation(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the Relu or Clip after it; None if there is none."""
    node = only_user(operator.y)
    if not is_operator(node, "Relu", "Clip"):
        return None
    if node.op_type == "Relu":
        return operator.activated([node], Activation("relu"))
    clip = bounds(graph, node)
    return clip and operator.activated([node], Activation("clip", clip))


def bounds(graph: Graph, node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds of a Relu or Clip; None if they are not constant, or not a range.

    A Clip's bounds may be NaN, or the lower one above the upper: no kernel computes its result.
    """
    if node.op_type == "Relu":
        return 0.0, _LARGEST
    given = attributes(node)  # before opset 11
    found = []
    for place, key, default in ((1, "min", -_LARGEST), (2, "max", _LARGEST)):
        bound = argument(node, place)
        found.append(given.get(key, default) if bound is None else graph.scalar(bound))
    return (found[0], found[1]) if None not in found and found[0] <= found[1] else None
