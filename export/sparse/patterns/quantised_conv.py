"""Conv of a QDQ file: q(y) = round(conv(x, W) + bias)."""

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.conv import AXES, constant_window
from mfac_compress.export.sparse.patterns.dequantised import dequantised
from mfac_compress.export.sparse.patterns.quantised_layer import quantised_operator
from mfac_compress.export.sparse.patterns.weight import needed


def match_quantised_conv(graph: Graph, node: ir.Node) -> SparseOperator | Unsupported:
    """Return the operator of a Conv node with a quantised weight, or why there is none."""
    source = dequantised(graph, node.inputs[1], "its weight")
    if isinstance(source, Unsupported):
        return source
    weight = graph.constant(source.value)
    if weight is None:
        return Unsupported(f"its weight {graph.not_constant_reason(source.value)}")
    if weight.ndim not in AXES:
        return Unsupported(f"its weight has shape {list(weight.shape)}, and {needed(*AXES)}")
    window = constant_window(attributes(node), weight.shape[2:])
    if isinstance(window, Unsupported):
        return window
    return quantised_operator(graph, node, output_axis=0, window=window)
