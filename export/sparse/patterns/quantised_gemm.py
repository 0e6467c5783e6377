"""Gemm of a QDQ file: q(y) = round(x W + bias)."""

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.quantised_layer import quantised_operator


def match_quantised_gemm(graph: Graph, node: ir.Node) -> SparseOperator | Unsupported:
    """Return the operator of a Gemm node with a quantised weight, or why there is none."""
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    given |= attributes(node)
    if given["transA"]:
        return Unsupported("its input is transposed (transA)")
    if given["alpha"] != 1 or given["beta"] != 1:
        return Unsupported("it is quantised, with an alpha or beta that is not 1")
    return quantised_operator(graph, node, output_axis=0 if given["transB"] else 1)
