"""Layers that no sparse operator can stand for, and why: other forms of quantised ones, and those
that ONNX Runtime has put together.
"""

from typing import NamedTuple

import onnx

_QDQ = "quantise with QuantFormat.QDQ, uint8 activations and symmetric int8 weights"
_WHOLE = f"it is in the QOperator format: {_QDQ}"
_OPTIMISED = "ONNX Runtime has optimised this file: give the file before optimisation"
_DYNAMIC = f"its activations are quantised while it runs: {_QDQ}"


class WeightInputs(NamedTuple):
    """Which inputs of a node are its weight, and the zero point of that."""

    weight: int
    zero_point: int | None = None
    """None of floats. The file may leave it out."""
    packed: bool = False
    """Whether no array of the weight as it is multiplied is in the file."""


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
    # Their channels are padded and in another order.
    ("com.microsoft", "NhwcFusedConv"): (WeightInputs(1, packed=True), _OPTIMISED),
    ("com.microsoft", "QLinearConv"): (WeightInputs(3, 5), _OPTIMISED),
    ("com.microsoft.nchwc", "Conv"): (WeightInputs(1, packed=True), _OPTIMISED),
    ("com.ms.internal.nhwc", "Conv"): (WeightInputs(1, packed=True), _OPTIMISED),
    ("com.ms.internal.nhwc", "QLinearConv"): (WeightInputs(3, packed=True), _OPTIMISED),
}


def why_not(node: onnx.NodeProto) -> str | None:
    """The reason that is said of such a layer; None for nodes that are none."""
    found = _KINDS.get(_key(node))
    return found[1] if found else None


def weight_inputs(node: onnx.NodeProto) -> WeightInputs | None:
    """Where such a layer's weight is; None for nodes that are none."""
    found = _KINDS.get(_key(node))
    return found[0] if found else None


def _key(node: onnx.NodeProto) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
