"""Layers that no sparse operator can compute, and why: other quantised forms, and operators that
ONNX Runtime has fused.
"""

from typing import NamedTuple

import onnx_ir as ir

_QDQ = "quantise with QuantFormat.QDQ, uint8 activations and symmetric int8 weights"
_WHOLE = f"it is in the QOperator format: {_QDQ}"
_OPTIMISED = "ONNX Runtime has optimised this file: give the file before optimisation"
_DYNAMIC = f"its activations are quantised dynamically: {_QDQ}"


class WeightInputs(NamedTuple):
    """Which inputs of a node are its weight and the weight's zero point."""

    weight: int
    zero_point: int | None = None
    """None for floats. The file may omit it."""
    packed: bool = False
    """Whether the file stores the weight in another form than it is multiplied in."""


_KINDS = {
    ("", "QLinearConv"): (WeightInputs(3, 5), _WHOLE),
    ("", "QLinearMatMul"): (WeightInputs(3, 5), _WHOLE),
    ("com.microsoft", "QGemm"): (WeightInputs(3, 5), _WHOLE),
    ("", "ConvInteger"): (WeightInputs(1, 3), _DYNAMIC),
    ("", "MatMulInteger"): (WeightInputs(1, 3), _DYNAMIC),
    ("com.microsoft", "MatMulIntegerToFloat"): (WeightInputs(1, 5), _DYNAMIC),
    ("com.microsoft", "DynamicQuantizeMatMul"): (WeightInputs(1, 3), _DYNAMIC),
    ("com.microsoft", "MatMulNBits"): (
        WeightInputs(1, packed=True),
        f"its weights have fewer than 8 bits: {_QDQ}",
    ),
    ("com.microsoft", "FusedConv"): (WeightInputs(1), _OPTIMISED),
    ("com.microsoft", "FusedGemm"): (WeightInputs(1), _OPTIMISED),
    ("com.microsoft", "FusedMatMul"): (WeightInputs(1), _OPTIMISED),
    ("com.microsoft", "GemmFastGelu"): (WeightInputs(1), _OPTIMISED),
    ("com.microsoft", "Attention"): (WeightInputs(1), _OPTIMISED),
    ("com.microsoft", "QAttention"): (WeightInputs(1, 7), _OPTIMISED),
    # The channels of these are padded and reordered.
    ("com.microsoft", "NhwcFusedConv"): (WeightInputs(1, packed=True), _OPTIMISED),
    ("com.microsoft", "QLinearConv"): (WeightInputs(3, 5), _OPTIMISED),
    ("com.microsoft.nchwc", "Conv"): (WeightInputs(1, packed=True), _OPTIMISED),
    ("com.ms.internal.nhwc", "Conv"): (WeightInputs(1, packed=True), _OPTIMISED),
    ("com.ms.internal.nhwc", "QLinearConv"): (WeightInputs(3, packed=True), _OPTIMISED),
}


def unsupported_reason(node: ir.Node) -> str | None:
    """Return why no sparse operator can compute such a layer; None for other nodes."""
    found = _KINDS.get(_key(node))
    return found[1] if found else None


def weight_inputs(node: ir.Node) -> WeightInputs | None:
    """Return which inputs of such a layer are its weight; None for other nodes."""
    found = _KINDS.get(_key(node))
    return found[0] if found else None


def _key(node: ir.Node) -> tuple[str, str]:
    return (node.domain, node.op_type)
