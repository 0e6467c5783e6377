"""ONNX nodes of the quantised sparse operators, as specified in docs/sparse-operators.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfac_compress.export.sparse.nodes import (
    SparseNode,
    conv_attributes,
    linear_attributes,
    node_with,
)
from mfac_compress.export.sparse.quads import Packed1x4


@dataclass(frozen=True)
class Rounding:
    """Requantisation of sums to unsigned bytes: y = clip(round(sum · scale) + zero point).

    Attributes:
        scales: float32, ``[outputs]``: scales of the sums, x_scale · w_scale / y_scale.
        x_zero_point: In 0 to 255. That of the weight is 0.
        y_zero_point: In 0 to 255.
        low: Smallest y, at least 0: the activation's lower bound.
        high: Largest y, at most 255: the activation's upper bound.
    """

    scales: np.ndarray
    x_zero_point: int
    y_zero_point: int
    low: int = 0
    high: int = 255


def sparse_qlinear(
    name: str,
    x: str,
    y: str,
    weight: Packed1x4,
    rounding: Rounding,
    *,
    bias: np.ndarray | None = None,
) -> SparseNode:
    """Build ``y = rounded((x − x_zero_point) Wᵀ + bias)``.

    Args:
        name: Name of the node; the initializers' names begin with it.
        x: Name of the input, uint8 ``[..., inputs]``.
        y: Name of the output, uint8 ``[..., outputs]``.
        weight: Packed from ``[outputs, inputs]``.
        rounding: Requantisation of the sums.
        bias: int32, ``[outputs]``, in steps of x_scale · w_scale.
    Raises:
        ValueError: If weight, rounding or bias do not fit.
    """
    return _node("SparseQLinear", name, x, y, weight, rounding, bias, linear_attributes(weight))


def sparse_qconv(
    name: str,
    x: str,
    y: str,
    weight: Packed1x4,
    rounding: Rounding,
    *,
    bias: np.ndarray | None = None,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
) -> SparseNode:
    """Build ``y = rounded(conv(x − x_zero_point, W) + bias)`` for images.

    Args:
        name: Name of the node; the initializers' names begin with it.
        x: Name of the input, uint8 ``[N, C, H, W]``.
        y: Name of the output.
        weight: Packed from ``[outputs, C / group, h, w]``.
        rounding: Requantisation of the sums.
        bias: int32, ``[outputs]``, in steps of x_scale · w_scale.
        strides: Vertical and horizontal.
        pads: Top, left, bottom, right.
        dilations: Vertical and horizontal.
    Raises:
        ValueError: If weight, rounding or bias do not fit.
    """
    attributes = conv_attributes(weight, strides, pads, dilations)
    return _node("SparseQConv", name, x, y, weight, rounding, bias, attributes)


def _node(
    kind: str,
    name: str,
    x: str,
    y: str,
    weight: Packed1x4,
    rounding: Rounding,
    bias: np.ndarray | None,
    attributes: dict[str, Any],
) -> SparseNode:
    outputs = weight.shape[:1]
    if rounding.scales.dtype != np.float32 or rounding.scales.shape != outputs:
        raise ValueError(
            f"scales must be float32 [{outputs[0]}]. "
            f"Got {rounding.scales.dtype} {rounding.scales.shape}."
        )
    if bias is not None and (bias.dtype != np.int32 or bias.shape != outputs):
        raise ValueError(f"bias must be int32 [{outputs[0]}]. Got {bias.dtype} {bias.shape}.")
    arrays = {
        "values": weight.values,
        "indices": weight.indices,
        "starts": weight.starts,
        "scales": rounding.scales,
    }
    if bias is not None:
        arrays["bias"] = bias
    attributes = {
        "x_zero_point": rounding.x_zero_point,
        "y_zero_point": rounding.y_zero_point,
        "min": rounding.low,
        "max": rounding.high,
        **attributes,
    }
    return node_with(kind, name, x, y, arrays, attributes)
