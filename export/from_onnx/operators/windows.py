"""Operators on images and sequences: padding, pooling, resizing."""

from collections.abc import Callable, Sequence
from math import ceil, floor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.export.from_onnx.registry import Compute, Operator, operator
from mfac_compress.export.from_onnx.values import Value, as_tensors, check_size, numbers

Pads = tuple[Sequence[int], Sequence[int]]
"""Widths before and after each spatial axis."""


def pads_of(node: Operator, kernel: Sequence[int], lengths: Sequence[int]) -> Pads:
    """Read how far an operator pads.

    Args:
        node: A convolution or a pooling.
        kernel: Lengths of its window.
        lengths: Of the input's spatial axes.
    """
    auto, axes = node.get("auto_pad", "NOTSET"), len(kernel)
    strides, dilations = (node.get(name, [1] * axes) for name in ("strides", "dilations"))
    if auto in ("NOTSET", "VALID"):
        pads = node.get("pads", [0] * 2 * axes) if auto == "NOTSET" else [0] * 2 * axes
        return pads[:axes], pads[axes:]
    small, large = [], []
    for size, stride, dilation, length in zip(kernel, strides, dilations, lengths, strict=True):
        reach = (-(-length // stride) - 1) * stride + (size - 1) * dilation + 1
        total = max(reach - length, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Pad the spatial axes of a tensor."""
    widths = [width for both in zip(*map(reversed, pads), strict=True) for width in both]
    return F.pad(x, widths, value=value)


_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("MaxPool")
def _max_pool(node: Operator) -> Compute:
    if not node.first_only:
        raise node.refuse("with indices as its second output")
    kernel = node.get("kernel_shape")
    pool, axes = _of_rank(node, _MAX, len(kernel)), len(kernel)
    strides, dilations = (node.get(name, [1] * axes) for name in ("strides", "dilations"))
    up = bool(node.get("ceil_mode", 0))

    def compute(x: Tensor) -> Tensor:
        before, after = pads_of(node, kernel, x.shape[2:])
        if [*before] == [*after] and all(2 * b <= k for b, k in zip(before, kernel, strict=True)):
            return pool(x, kernel, strides, [*before], dilations, up)
        x = padded(x, (before, after), -torch.inf)
        return pool(x, kernel, strides, 0, dilations, up)

    return compute


@operator("AveragePool")
def _average_pool(node: Operator) -> Compute:
    kernel = node.get("kernel_shape")
    pool, axes = _of_rank(node, _AVERAGE, len(kernel)), len(kernel)
    strides = node.get("strides", [1] * axes)
    up, with_pads = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    if any(dilation != 1 for dilation in node.get("dilations", ())):
        raise node.refuse("with dilations")

    def compute(x: Tensor) -> Tensor:
        before, after = pads_of(node, kernel, x.shape[2:])
        if [*before] == [*after] and all(2 * b <= k for b, k in zip(before, kernel, strict=True)):
            return pool(x, kernel, strides, [*before], up, with_pads)
        if up:
            raise ValueError("ceil_mode with pads that differ")
        total = pool(padded(x, (before, after)), kernel, strides, 0)
        if with_pads:
            return total
        share = pool(padded(torch.ones_like(x[:1, :1]), (before, after)), kernel, strides, 0)
        return total / share

    return compute


def _of_rank(node: Operator, functions: dict[int, Callable[..., Tensor]], axes: int) -> Any:
    if axes not in functions:
        raise node.refuse(f"along {axes} axes")
    return functions[axes]


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Operator) -> Compute:
    if node.kind == "GlobalMaxPool":
        return lambda x: torch.amax(x, [*range(2, x.ndim)], keepdim=True)
    return lambda x: x.mean([*range(2, x.ndim)], keepdim=True)


_POSITIONS: dict[str, Callable[[np.ndarray, float, int, int], np.ndarray]] = {
    # From places in the output, the scale and both lengths to places in the input.
    "align_corners": lambda x, scale, old, new: x * (old - 1) / max(new - 1, 1),
    "asymmetric": lambda x, scale, old, new: x / scale,
    "half_pixel": lambda x, scale, old, new: (x + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda x, scale, old, new: (
        (x + 0.5) / scale - 0.5 if new > 1 else np.zeros_like(x)
    ),
}
_ROUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}


@operator("Resize", sizes=True)
def _resize(node: Operator) -> Compute:
    where = node.get("coordinate_transformation_mode", "half_pixel")
    if where not in _POSITIONS or node.get("antialias", 0) or node.get("exclude_outside", 0):
        raise node.refuse(f"with {where}, antialias or exclude_outside")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch" or node.opset < 11:
        raise node.refuse("with keep_aspect_ratio_policy, or of an opset before 11")
    only = node.get("axes")

    def compute(x: Value, roi: Value = None, scales: Value = None, sizes: Value = None) -> Tensor:
        (x,) = as_tensors((x,), node.device())
        axes = [axis % x.ndim for axis in (only or range(x.ndim))]
        if sizes is not None:
            news = numbers(sizes)
            factors = [new / x.shape[a] for new, a in zip(news, axes, strict=True)]
        else:
            factors = numbers(scales, "its scales")
            news = [floor(x.shape[a] * f) for f, a in zip(factors, axes, strict=True)]
        check_size([*x.shape[:2], *news[-2:]])
        for axis, factor, new in zip(axes, factors, news, strict=True):
            if axis and (factor != 1 or new != x.shape[axis]):
                x = _resized(node, x, axis, factor, int(new))
        return x

    return compute


def _resized(node: Operator, x: Tensor, axis: int, factor: float, new: int) -> Tensor:
    """Resize along one axis: a weighted sum of a few shifted copies."""
    old = int(x.shape[axis])
    name = node.get("coordinate_transformation_mode", "half_pixel")
    at = _POSITIONS[name](np.arange(new, dtype=np.float64), factor, old, new)
    taps, weights = _taps(node, at)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    total = None
    for places, weight in zip(taps, weights, strict=True):
        index = torch.from_numpy(np.clip(places, 0, old - 1).astype(np.int64)).to(x.device)
        part = x.index_select(axis, index)
        if len(taps) > 1:
            part = part * torch.from_numpy(weight).to(x).reshape(shape)
        total = part if total is None else total + part
    return total


def _taps(node: Operator, at: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Places in the input that make up each place of the output, and their weights."""
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        places = _ROUND[node.get("nearest_mode", "round_prefer_floor")](at)
        return [places], [np.ones_like(at)]
    low = np.floor(at)
    rest = at - low
    if mode == "linear":
        return [low, low + 1], [1 - rest, rest]
    a = node.get("cubic_coeff_a", -0.75)

    def near(t: np.ndarray) -> np.ndarray:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    weights = [far(1 + rest), near(rest), near(1 - rest), far(2 - rest)]
    return [low + shift for shift in (-1, 0, 1, 2)], weights


@operator("GridSample")
def _grid_sample(node: Operator) -> Compute:
    mode = node.get("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    corners, border = bool(node.get("align_corners", 0)), node.get("padding_mode", "zeros")
    return lambda x, grid: F.grid_sample(x, grid, mode, border, corners)


@operator("LRN")
def _lrn(node: Operator) -> Compute:
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    beta, bias = node.get("beta", 0.75), node.get("bias", 1.0)
    before = floor((size - 1) / 2), ceil((size - 1) / 2)

    def compute(x: Tensor) -> Tensor:
        squares = F.pad(x.square().flatten(2).unsqueeze(1), (0, 0, *before))
        mean = F.avg_pool2d(squares, (size, 1), stride=1).squeeze(1).reshape(x.shape)
        return x / (bias + alpha * mean) ** beta

    return compute
