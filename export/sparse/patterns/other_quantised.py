"""Quantised layers that no sparse operator can stand for, and why."""

import onnx

_QDQ = "quantise with QuantFormat.QDQ, uint8 activations and symmetric int8 weights"
_WHOLE = f"it is in the QOperator format: {_QDQ}"
_DYNAMIC = f"its activations are quantised while it runs: {_QDQ}"
_KINDS = {
    ("", "QLinearConv"): (3, _WHOLE),
    ("", "QLinearMatMul"): (3, _WHOLE),
    ("com.microsoft", "QGemm"): (3, _WHOLE),
    ("", "ConvInteger"): (1, _DYNAMIC),
    ("", "MatMulInteger"): (1, _DYNAMIC),
    ("com.microsoft", "MatMulIntegerToFloat"): (1, _DYNAMIC),
    ("com.microsoft", "DynamicQuantizeMatMul"): (1, _DYNAMIC),
    ("com.microsoft", "MatMulNBits"): (1, f"its weights have fewer than 8 bits: {_QDQ}"),
}


def why_not(node: onnx.NodeProto) -> str | None:
    """The reason that is said of a quantised layer; None for nodes that are none."""
    found = _KINDS.get(_key(node))
    return found[1] if found else None


def weight_input(node: onnx.NodeProto) -> int:
    """Which input of a Conv, Gemm, MatMul, or of a quantised form of these, is the weight."""
    found = _KINDS.get(_key(node))
    return found[0] if found else 1


def _key(node: onnx.NodeProto) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
