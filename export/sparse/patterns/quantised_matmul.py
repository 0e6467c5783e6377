"""MatMul of a QDQ file: q(y) = round(x W), x of any number of axes."""

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import Unsupported
from mfac_compress.export.sparse.patterns.quantised_layer import quantised_operator
from mfac_compress.export.sparse.quantised_operator import QuantisedOperator


def match_quantised_matmul(graph: Graph, position: int) -> QuantisedOperator | Unsupported:
    """Return the operator of a MatMul node with a quantised weight, or why there is none."""
    return quantised_operator(graph, position, output_axis=1)
