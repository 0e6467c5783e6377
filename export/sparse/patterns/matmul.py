"""MatMul: y = x W, with W constant and x of any number of axes; and the bias added to it."""

from dataclasses import replace

import onnx

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.dequantised import dequantised_constant
from mfac_compress.export.sparse.patterns.layer import layer_operator
from mfac_compress.export.sparse.patterns.weight import constant_bias, constant_weight


def has_left_weight(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node is y = W x, with W constant and x not constant."""
    if node.op_type != "MatMul":
        return False
    left, right = (_is_constant(graph, name) for name in node.input)
    return left and not right


def _is_constant(graph: Graph, name: str) -> bool:
    return graph.constant(name) is not None or dequantised_constant(graph, name) is not None


def match_matmul(graph: Graph, position: int) -> SparseOperator | Unsupported:
    """Return the operator of a MatMul node, or why there is none."""
    node = graph.nodes[position]
    if has_left_weight(graph, node):
        return Unsupported(
            "its weight is the left factor, and the kernels take x W, as of nn.Linear"
        )
    if graph.constant(node.input[0]) is not None:
        return Unsupported(
            "both factors are constant: ONNX Runtime multiplies them once, at loading"
        )
    weight = constant_weight(graph, node.input[1], 2)
    if isinstance(weight, Unsupported):
        return weight
    return layer_operator(graph, position, weight.T)


def add_bias(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the Add of a constant bias after it; None if there is none."""
    position = graph.only_user(operator.y)
    if operator.window or operator.bias is not None or not operator.can_fuse:
        return None
    if not graph.is_operator(position, "Add"):
        return None
    node = graph.nodes[position]
    other = node.input[1] if node.input[0] == operator.y else node.input[0]
    bias = constant_bias(graph, other, len(operator.weight))
    if bias is None or graph.constant(other).ndim > 1:
        return None
    nodes = (*operator.nodes, position)
    return replace(operator, nodes=nodes, y=node.output[0], bias=bias)
