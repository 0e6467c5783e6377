"""Gemm of a QDQ file: q(y) = round(x W + bias)."""

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import Unsupported
from mfac_compress.export.sparse.patterns.quantised_layer import quantised_operator
from mfac_compress.export.sparse.quantised_operator import QuantisedOperator


def match_quantised_gemm(graph: Graph, position: int) -> QuantisedOperator | Unsupported:
    """Return the operator of a Gemm node with a quantised weight, or why there is none."""
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    given |= attributes(graph.nodes[position])
    if given["transA"]:
        return Unsupported("its input is transposed (transA)")
    if given["alpha"] != 1 or given["beta"] != 1:
        return Unsupported("it is quantised, with an alpha or beta that is not 1")
    return quantised_operator(graph, position, output_axis=0 if given["transB"] else 1)
