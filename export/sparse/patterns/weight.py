"""What every layer's weight must be."""

import numpy as np

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import Refusal
from mfac_compress.export.sparse.patterns.dequantised import dequantised


def constant_weight(graph: Graph, name: str, axes: int) -> np.ndarray | Refusal:
    """The array of a weight.

    Args:
        graph: Where it stands.
        name: Of the value.
        axes: How many it must have.
    Returns:
        float32, or the reason why it does not serve.
    """
    weight = graph.constant(name)
    if weight is None:
        return Refusal("its weight is not constant")
    if weight.dtype != np.float32:
        return Refusal(f"its weight is {weight.dtype}, and the kernels take float32")
    if weight.ndim != axes or weight.size == 0:
        return Refusal(f"its weight has shape {list(weight.shape)}, and {axes} axes are needed")
    if not np.isfinite(weight).all():
        return Refusal("its weight is not finite")
    return weight


def constant_bias(graph: Graph, name: str, outputs: int) -> np.ndarray | None:
    """A bias as ``[outputs]``; None where it is not a constant that is one number per output."""
    bias = graph.constant(name)
    if bias is None or bias.dtype != np.float32 or bias.size not in (1, outputs):
        return None
    if bias.ndim and bias.shape[-1] != bias.size:
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (outputs,)))


def stored_weight(graph: Graph, name: str) -> tuple[str, np.ndarray] | None:
    """The tensor that a layer's weight is read from, through a DequantizeLinear, and its array.

    Args:
        graph: Where it stands.
        name: Of the weight as the layer reads it.
    Returns:
        The array with 0 for each weight that is zero. None where it is not constant.
    """
    source = dequantised(graph, name)
    if source is None:
        array = graph.constant(name)
        return None if array is None else (name, array)
    array = graph.constant(source.name)
    if array is None or array.dtype.kind not in "iu":
        return None
    if source.zero_point is None:
        return source.name, array
    zero_point = source.zero_point.astype(np.int64)
    if zero_point.size > 1:
        zero_point = np.expand_dims(zero_point, [a for a in range(array.ndim) if a != source.axis])
    return source.name, array.astype(np.int64) - zero_point
