"""Gemm: y = α x W + β c, with W constant and c a bias."""

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, attributes
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.layer import layer_operator
from mfac_compress.export.sparse.patterns.weight import constant_bias, constant_weight


def match_gemm(graph: Graph, node: ir.Node) -> SparseOperator | Unsupported:
    """Return the operator of a Gemm node, with α and β folded in, or why there is none."""
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | attributes(node)
    weight = constant_weight(graph, node.inputs[1], 2)
    if isinstance(weight, Unsupported):
        return weight
    if given["transA"]:
        return Unsupported("its input is transposed (transA)")
    weight = weight if given["transB"] else weight.T
    third = argument(node, 2)
    bias = constant_bias(graph, third, len(weight))
    if third is not None and bias is None:
        return Unsupported("its third input is not a constant bias")
    if bias is not None:
        bias = bias * np.float32(given["beta"])
    return layer_operator(node, weight * np.float32(given["alpha"]), bias=bias)
