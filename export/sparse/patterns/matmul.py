"""MatMul: y = x W, with W constant and x of any number of axes; and the bias added to it."""

from dataclasses import replace

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, is_operator, only_user
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.dequantised import dequantised_constant
from mfac_compress.export.sparse.patterns.layer import layer_operator
from mfac_compress.export.sparse.patterns.weight import (
    constant_bias,
    constant_weight,
    is_bounded,
)


def has_left_weight(graph: Graph, node: ir.Node) -> bool:
    """Whether a node is y = W x, with W constant and x not constant."""
    if node.op_type != "MatMul":
        return False
    left, right = (_is_constant(graph, value) for value in node.inputs)
    return left and not right


def _is_constant(graph: Graph, value: ir.Value) -> bool:
    return graph.constant(value) is not None or dequantised_constant(graph, value) is not None


def match_matmul(graph: Graph, node: ir.Node) -> SparseOperator | Unsupported:
    """Return the operator of a MatMul node, or why there is none."""
    if has_left_weight(graph, node):
        return Unsupported(
            "its weight is the left factor, and the kernels take x W, as of nn.Linear"
        )
    if graph.constant(node.inputs[0]) is not None:
        return Unsupported(
            "both factors are constant: ONNX Runtime multiplies them once, at loading"
        )
    weight = constant_weight(graph, node.inputs[1], 2)
    if isinstance(weight, Unsupported):
        return weight
    return layer_operator(node, weight.T)


def add_bias(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the Add of a constant bias after it; None if there is none."""
    node = only_user(operator.y)
    if operator.window or operator.bias is not None or not is_operator(node, "Add"):
        return None
    other = node.inputs[1] if node.inputs[0] is operator.y else node.inputs[0]
    bias = constant_bias(graph, other, len(operator.weight))
    if bias is None or graph.constant(other).ndim > 1:
        return None
    if operator.is_quantised and not is_bounded(bias):
        return None
    return replace(operator, nodes=(*operator.nodes, node), bias=bias)
