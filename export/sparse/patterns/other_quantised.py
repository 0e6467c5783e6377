"""Quantised layers that no sparse operator can stand for, and why."""

from typing import NamedTuple

import onnx

_QDQ = "quantise with QuantFormat.QDQ, uint8 activations and symmetric int8 weights"
_WHOLE = f"it is in the QOperator format: {_QDQ}"
_DYNAMIC = f"its activations are quantised while it runs: {_QDQ}"


class WeightInputs(NamedTuple):
    """Which inputs of a node are its weight, and the zero point of that."""

    weight: int
    zero_point: int | None
    """None where the weight is packed: no array of it is in the file. It may be left out."""


_KINDS = {
    ("", "QLinearConv"): (WeightInputs(3, 5), _WHOLE),
    ("", "QLinearMatMul"): (WeightInputs(3, 5), _WHOLE),
    ("com.microsoft", "QGemm"): (WeightInputs(3, 5), _WHOLE),
    ("", "ConvInteger"): (WeightInputs(1, 3), _DYNAMIC),
    ("", "MatMulInteger"): (WeightInputs(1, 3), _DYNAMIC),
    ("com.microsoft", "MatMulIntegerToFloat"): (WeightInputs(1, 5), _DYNAMIC),
    ("com.microsoft", "DynamicQuantizeMatMul"): (WeightInputs(1, 3), _DYNAMIC),
    ("com.microsoft", "MatMulNBits"): (
        WeightInputs(1, None),
        f"its weights have fewer than 8 bits: {_QDQ}",
    ),
}


def why_not(node: onnx.NodeProto) -> str | None:
    """The reason that is said of a quantised layer; None for nodes that are none."""
    found = _KINDS.get(_key(node))
    return found[1] if found else None


def weight_inputs(node: onnx.NodeProto) -> WeightInputs | None:
    """Where a quantised layer's weight is; None for nodes that are none."""
    found = _KINDS.get(_key(node))
    return found[0] if found else None


def _key(node: onnx.NodeProto) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
