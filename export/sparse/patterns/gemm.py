"""Gemm: y = α x W + β c, with W constant and c a bias."""

import numpy as np

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.layer import layer_operator
from mfac_compress.export.sparse.patterns.weight import constant_bias, constant_weight


def match_gemm(graph: Graph, position: int) -> SparseOperator | Unsupported:
    """Return the operator of a Gemm node, with α and β folded in, or why there is none."""
    node = graph.nodes[position]
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | attributes(node)
    weight = constant_weight(graph, node.input[1], 2)
    if isinstance(weight, Unsupported):
        return weight
    if given["transA"]:
        return Unsupported("its input is transposed (transA)")
    weight = weight if given["transB"] else weight.T
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = constant_bias(graph, node.input[2], len(weight))
        if bias is None:
            return Unsupported("its third input is not a constant bias")
        bias = bias * np.float32(given["beta"])
    return layer_operator(graph, position, weight * np.float32(given["alpha"]), bias=bias)
