"""Values that DequantizeLinear makes, and QuantizeLinear takes: x = scale · (q − zero point)."""

from dataclasses import dataclass

import numpy as np

from mfac_compress.export.sparse.graph import Graph, attributes


@dataclass(frozen=True)
class Quantised:
    """One end of a QuantizeLinear or DequantizeLinear.

    Attributes:
        position: Of the node.
        name: Of the quantised value.
        scale: float32, a number or one for each index of an axis.
        zero_point: Of the quantised value's type; None where the file gives none.
        axis: Of the scales. Not negative where the value is constant.
    """

    position: int
    name: str
    scale: np.ndarray
    zero_point: np.ndarray | None
    axis: int


def dequantised_constant(graph: Graph, name: str) -> int | None:
    """Position of the DequantizeLinear that makes a value of a constant; None where none does."""
    position = graph.producer(name)
    if not graph.is_operator(position, "DequantizeLinear"):
        return None
    return None if graph.constant(graph.nodes[position].input[0]) is None else position


def dequantised(graph: Graph, name: str) -> Quantised | None:
    """What a value was dequantised from; None where it was not, or not with constants."""
    position = graph.producer(name)
    if not graph.is_operator(position, "DequantizeLinear"):
        return None
    return _read(graph, position, graph.nodes[position].input[0])


def quantised(graph: Graph, position: int | None) -> Quantised | None:
    """What a QuantizeLinear makes; None where the node is none, or not with constants."""
    if not graph.is_operator(position, "QuantizeLinear"):
        return None
    return _read(graph, position, graph.nodes[position].output[0])


def _read(graph: Graph, position: int, name: str) -> Quantised | None:
    node = graph.nodes[position]
    given = attributes(node)
    scale = graph.constant(node.input[1])
    has_zero_point = len(node.input) > 2 and node.input[2]
    zero_point = graph.constant(node.input[2]) if has_zero_point else None
    if scale is None or (has_zero_point and zero_point is None) or given.get("block_size", 0):
        return None
    usable = scale.dtype == np.float32 and scale.ndim <= 1 and np.isfinite(scale).all()
    if not usable or not (scale > 0).all():
        return None
    axis = given.get("axis", 1)
    array = graph.constant(name)
    if array is not None and array.ndim:
        axis %= array.ndim
    return Quantised(position, name, scale, zero_point, axis)
