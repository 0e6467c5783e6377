"""Outputs of DequantizeLinear and inputs of QuantizeLinear: x = scale · (q − zero point)."""

from dataclasses import dataclass

import numpy as np

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import Unsupported


@dataclass(frozen=True)
class Quantised:
    """The quantised value of a QuantizeLinear or DequantizeLinear.

    Attributes:
        position: Position of the node.
        name: Name of the quantised value.
        scale: float32, one number or one for each index of an axis.
        zero_point: Of the quantised value's type; None if the file has none.
        axis: Axis of the scales. Not negative if the value is constant.
    """

    position: int
    name: str
    scale: np.ndarray
    zero_point: np.ndarray | None
    axis: int


def dequantised_constant(graph: Graph, name: str) -> int | None:
    """Return the position of a DequantizeLinear (any domain) of a constant; None for others."""
    position = graph.producer(name)
    if position is None or graph.nodes[position].op_type != "DequantizeLinear":
        return None
    return None if graph.constant(graph.nodes[position].input[0]) is None else position


def dequantised(graph: Graph, name: str, what: str) -> Quantised | Unsupported:
    """Return what a value was dequantised from, or why there is nothing.

    Args:
        graph: The graph of the value.
        name: Name of the value.
        what: Description of it, with which the reason begins.
    """
    position = graph.producer(name)
    if position is None or graph.nodes[position].op_type != "DequantizeLinear":
        return Unsupported(f"{what} is not quantised")
    return _read(graph, position, graph.nodes[position].input[0], what)


def quantised(graph: Graph, position: int | None, what: str) -> Quantised | Unsupported:
    """Return the output of a QuantizeLinear, or why there is none.

    Args:
        graph: The graph of the node.
        position: Position of the node; None or another node if there is no QuantizeLinear.
        what: Description of the output, with which the reason begins.
    """
    if position is None or graph.nodes[position].op_type != "QuantizeLinear":
        return Unsupported(f"{what} is not quantised")
    return _read(graph, position, graph.nodes[position].output[0], what)


def _read(graph: Graph, position: int, name: str, what: str) -> Quantised | Unsupported:
    node = graph.nodes[position]
    if not graph.is_operator(position, node.op_type):
        known = f"only that of ONNX is supported ({node.op_type} without UseQDQContribOps)"
        return Unsupported(f"{what} has a {node.op_type} of {node.domain}, and {known}")
    given = attributes(node)
    scale = graph.constant(node.input[1])
    has_zero_point = len(node.input) > 2 and node.input[2]
    zero_point = graph.constant(node.input[2]) if has_zero_point else None
    if scale is None or (has_zero_point and zero_point is None):
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
    array = graph.constant(name)
    if array is not None and array.ndim:
        axis %= array.ndim
    return Quantised(position, name, scale, zero_point, axis)
