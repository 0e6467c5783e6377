"""Checks that every layer's weight and bias must pass."""

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.nodes import LARGEST_BIAS
from mfac_compress.export.sparse.operator import Unsupported


def constant_weight(graph: Graph, value: ir.Value, *axes: int) -> np.ndarray | Unsupported:
    """Return the array of a constant weight.

    Args:
        graph: The graph of the weight.
        value: The value.
        axes: Allowed numbers of axes.
    Returns:
        The float32 array, or why the kernels cannot use it.
    """
    weight = graph.constant(value)
    if weight is None:
        return Unsupported(f"its weight {graph.not_constant_reason(value)}")
    if weight.dtype != np.float32:
        return Unsupported(f"its weight is {weight.dtype}, and the kernels take float32")
    if weight.ndim not in axes or weight.size == 0:
        return Unsupported(f"its weight has shape {list(weight.shape)}, and {needed(*axes)}")
    if not np.isfinite(weight).all():
        return Unsupported("its weight is not finite")
    return weight


def needed(*axes: int) -> str:
    """Describe how many axes a weight may have."""
    return f"{' or '.join(map(str, axes))} axes are needed"


def is_bounded(bias: np.ndarray) -> bool:
    """Whether a quantised operator that goes on in floats can add a bias."""
    return bool((np.abs(bias) <= LARGEST_BIAS).all())


def constant_bias(graph: Graph, value: ir.Value | None, outputs: int) -> np.ndarray | None:
    """Return a bias as ``[outputs]``; None if it is not a constant with one number per output."""
    bias = graph.constant(value)
    if bias is None or bias.dtype != np.float32 or bias.size not in (1, outputs):
        return None
    if bias.ndim and bias.shape[-1] != bias.size:
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (outputs,)))
