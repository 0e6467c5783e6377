"""MatMul of a QDQ file: q(y) = round(x W), x of any number of axes."""

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.quantised_layer import quantised_operator


def match_quantised_matmul(graph: Graph, node: ir.Node) -> SparseOperator | Unsupported:
    """Return the operator of a MatMul node with a quantised weight, or why there is none."""
    return quantised_operator(graph, node, output_axis=1)
