"""What every layer's weight must be."""

import numpy as np

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import Refusal


def constant_weight(graph: Graph, name: str, *axes: int) -> np.ndarray | Refusal:
    """The array of a weight.

    Args:
        graph: Where it stands.
        name: Of the value.
        axes: How many it may have.
    Returns:
        float32, or the reason why it does not serve.
    """
    weight = graph.constant(name)
    if weight is None:
        return Refusal(f"its weight {graph.why_not_constant(name)}")
    if weight.dtype != np.float32:
        return Refusal(f"its weight is {weight.dtype}, and the kernels take float32")
    if weight.ndim not in axes or weight.size == 0:
        return Refusal(f"its weight has shape {list(weight.shape)}, and {needed(*axes)}")
    if not np.isfinite(weight).all():
        return Refusal("its weight is not finite")
    return weight


def needed(*axes: int) -> str:
    """Words for how many axes a weight may have."""
    return f"{' or '.join(map(str, axes))} axes are needed"


def constant_bias(graph: Graph, name: str, outputs: int) -> np.ndarray | None:
    """A bias as ``[outputs]``; None where it is not a constant that is one number per output."""
    bias = graph.constant(name)
    if bias is None or bias.dtype != np.float32 or bias.size not in (1, outputs):
        return None
    if bias.ndim and bias.shape[-1] != bias.size:
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (outputs,)))
