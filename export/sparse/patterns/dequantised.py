"""Outputs of DequantizeLinear and inputs of QuantizeLinear: x = scale · (q − zero point)."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, attributes, is_operator, only_user
from mfac_compress.export.sparse.operator import Unsupported


@dataclass(frozen=True)
class Quantised:
    """The quantised value of a QuantizeLinear or DequantizeLinear.

    Attributes:
        node: The node.
        value: The quantised value.
        scale: float32, one number or one for each index of an axis.
        zero_point: Of the quantised value's type; None if the file has none.
        axis: Axis of the scales. Not negative if the value is constant.
    """

    node: ir.Node
    value: ir.Value
    scale: np.ndarray
    zero_point: np.ndarray | None
    axis: int


def only_use_of_bytes(value: ir.Value, kind: str) -> tuple[ir.Node, ir.Node] | None:
    """Return the DequantizeLinear that alone reads a value, and the node of a kind that alone reads
    its result; None if there are no such nodes."""
    floats = only_user(value)
    node = only_user(floats.outputs[0]) if is_operator(floats, "DequantizeLinear") else None
    return (floats, node) if is_operator(node, kind) else None


def dequantised_constant(graph: Graph, value: ir.Value) -> ir.Node | None:
    """Return the DequantizeLinear (any domain) that makes a value of a constant, if one does."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return None if graph.constant(node.inputs[0]) is None else node


def dequantised(graph: Graph, value: ir.Value, what: str) -> Quantised | Unsupported:
    """Return what a value was dequantised from, or why there is nothing.

    Args:
        graph: The graph of the value.
        value: The value.
        what: Description of it, with which the reason begins.
    """
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return Unsupported(f"{what} is not quantised")
    return _read(graph, node, node.inputs[0], what)


def quantised(graph: Graph, node: ir.Node | None, what: str) -> Quantised | Unsupported:
    """Return the output of a QuantizeLinear, or why there is none.

    Args:
        graph: The graph of the node.
        node: The node; None or another node if there is no QuantizeLinear.
        what: Description of the output, with which the reason begins.
    """
    if node is None or node.op_type != "QuantizeLinear":
        return Unsupported(f"{what} is not quantised")
    return _read(graph, node, node.outputs[0], what)


def unless_bytes(end: Quantised, what: str, verb: str) -> Unsupported | None:
    """Return why an input or output is not uint8 with one scale and zero point; None if it is."""
    kernels = f"and the kernels {verb} uint8 (QuantType.QUInt8)"
    if end.zero_point is None:
        return Unsupported(f"{what} has no zero point, {kernels}")
    if end.zero_point.dtype != np.uint8:
        return Unsupported(f"{what} is {end.zero_point.dtype}, {kernels}")
    if end.scale.size != 1 or end.zero_point.size != 1:
        return Unsupported(f"{what} has more than one scale")
    return None


def _read(graph: Graph, node: ir.Node, value: ir.Value, what: str) -> Quantised | Unsupported:
    if not is_operator(node, node.op_type):
        known = f"only that of ONNX is supported ({node.op_type} without UseQDQContribOps)"
        return Unsupported(f"{what} has a {node.op_type} of {node.domain}, and {known}")
    given = attributes(node)
    scale, zero_point = (graph.constant(argument(node, place)) for place in (1, 2))
    if scale is None or (argument(node, 2) is not None and zero_point is None):
        return Unsupported(f"{what} has a scale or zero point that is not constant")
    if given.get("block_size", 0) or scale.ndim > 1:
        return Unsupported(
            f"{what} is quantised in blocks (block_size), which the kernels do not take"
        )
    if scale.dtype != np.float32:
        return Unsupported(f"{what} has {scale.dtype} scales, and the kernels take float32")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return Unsupported(f"{what} has scales that are not finite and positive")
    axis = given.get("axis", 1)
    array = graph.constant(value)
    if array is not None and array.ndim:
        axis %= array.ndim
    return Quantised(node, value, scale, zero_point, axis)
