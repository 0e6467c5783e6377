"""Operators that ask for shapes, or change them and no value."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfac_compress.export.from_onnx.registry import Compute, Operator, operator
from mfac_compress.export.from_onnx.values import (
    MOST_INTEGERS,
    Known,
    Value,
    are_fixed,
    as_tensors,
    check_size,
    number,
    numbers,
)


@operator("Shape", sizes=True)
def _shape(node: Operator) -> Compute:
    start, end = node.get("start", 0), node.get("end")

    def compute(x: Value) -> Value:
        shape = x.array.shape if isinstance(x, Known) else x.shape
        return Known.of([*shape][start:end])

    return compute


@operator("Size", sizes=True)
def _size(node: Operator) -> Compute:
    return lambda x: Known.of(x.array.size if isinstance(x, Known) else prod(x.shape))


@operator("Reshape", sizes=True)
def _reshape(node: Operator) -> Compute:
    keep_zeros, fixed = bool(node.get("allowzero", 0)), node.get("shape")
    opened = None if node.batch is None else _OpenedShape(node.batch)

    def compute(x: Value, shape: Value = None) -> Value:
        wanted = [*fixed] if shape is None else numbers(shape)
        if isinstance(x, Known) and are_fixed(wanted):
            if not keep_zeros:
                wanted = [x.array.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
            return Known.of(x.array.reshape(wanted), x.dtype)
        (x,) = as_tensors((x,), node.device())
        if not keep_zeros:
            wanted = [x.shape[i] if _is(size, 0) else size for i, size in enumerate(wanted)]
        return x.reshape(wanted if opened is None else opened(x, wanted))

    return compute


class _OpenedShape:
    """The shapes of a Reshape for other numbers of samples than its file was exported for.

    The first call is to have that number. Later, the one axis that has another length holds the
    samples, and in the result they are where as many elements come before or after them. Where
    they are merged with another axis that may be wrong, which the comparison with the file shows.

    Args:
        batch: That number.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._first: tuple[list[int], list[int]] | None = None

    def __call__(self, x: Tensor, wanted: list[Any]) -> list[Any]:
        if self._first is None:
            self._first = [*x.shape], [*x.reshape(wanted).shape]
            return wanted
        before, after = self._first
        axis = next((a for a, size in enumerate(before) if not _is(x.shape[a], size)), None)
        if axis is None:
            return wanted
        place = _place(before, after, axis, self._batch)
        return [-1 if p == place else size for p, size in enumerate(after)]


def _place(before: list[int], after: list[int], axis: int, batch: int) -> int:
    """The axis with the samples, once those of ``before`` have become those of ``after``."""
    outer = [p for p in range(len(after)) if prod(after[:p]) == prod(before[:axis])]
    inner = [p for p in range(len(after)) if prod(after[p + 1 :]) == prod(before[axis + 1 :])]
    alone = [p for p in (*outer, *inner) if after[p] == batch]
    merged = (*inner, *outer) if len(after) < len(before) and axis else (*outer, *inner)
    return next(iter((*alone, *merged)), 0)


def _is(size: Any, value: int) -> bool:
    return isinstance(size, int) and size == value


@operator("Flatten")
def _flatten(node: Operator) -> Compute:
    axis = node.get("axis", 1)

    def compute(x: Tensor) -> Tensor:
        place = axis + x.ndim if axis < 0 else axis
        if place == 1:
            return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
        return x.reshape(prod(x.shape[:place]), prod(x.shape[place:]))

    return compute


@operator("Transpose", sizes=True)
def _transpose(node: Operator) -> Compute:
    order = node.get("perm")

    def compute(x: Value) -> Value:
        if isinstance(x, Known):
            return Known.of(x.array.transpose(order), x.dtype)
        return x.permute(*(order if order is not None else reversed(range(x.ndim))))

    return compute


@operator("Squeeze", sizes=True)
def _squeeze(node: Operator) -> Compute:
    fixed = node.get("axes")

    def compute(x: Value, axes: Value = None) -> Value:
        chosen = fixed if axes is None else numbers(axes, "its axes")
        if isinstance(x, Known):
            given = None if chosen is None else tuple(map(int, chosen))
            return Known.of(x.array.squeeze(given), x.dtype)
        if chosen is None:
            # Not the batch: a file is to compute the same for one sample as for several.
            chosen = [axis for axis, length in enumerate(x.shape) if _is(length, 1)]
        places = {axis % x.ndim for axis in chosen}
        return x.squeeze(tuple(places))

    return compute


@operator("Unsqueeze", sizes=True)
def _unsqueeze(node: Operator) -> Compute:
    fixed = node.get("axes")

    def compute(x: Value, axes: Value = None) -> Value:
        chosen = [*map(int, fixed if axes is None else numbers(axes, "its axes"))]
        ndim = x.array.ndim if isinstance(x, Known) else x.ndim
        places = sorted(axis % (ndim + len(chosen)) for axis in chosen)
        if isinstance(x, Known):
            return Known.of(np.expand_dims(x.array, tuple(places)), x.dtype)
        for place in places:
            x = x.unsqueeze(place)
        return x

    return compute


@operator("Expand", sizes=True)
def _expand(node: Operator) -> Compute:
    def compute(x: Value, shape: Value) -> Value:
        wanted = numbers(shape)
        if isinstance(x, Known) and are_fixed(wanted) and prod(wanted) <= MOST_INTEGERS:
            broad = np.broadcast_shapes(x.array.shape, tuple(wanted))
            return Known.of(np.broadcast_to(x.array, broad), x.dtype)
        (x,) = as_tensors((x,), node.device())
        missing = len(wanted) - x.ndim
        own = [1] * max(missing, 0) + [*x.shape]
        asked = [1] * max(-missing, 0) + wanted
        # A size of 1 takes the tensor's own.
        sizes = [mine if _is(size, 1) else size for mine, size in zip(own, asked, strict=True)]
        return x.expand(sizes)

    return compute


@operator("ConstantOfShape", sizes=True)
def _constant_of_shape(node: Operator) -> Compute:
    value = node.get("value")
    value = torch.zeros(1) if value is None else torch.from_numpy(np.array(value.numpy()))
    filler, dtype = value.reshape(()).item(), value.dtype

    def compute(shape: Value) -> Value:
        sizes = numbers(shape)
        if are_fixed(sizes) and not dtype.is_floating_point and prod(sizes) <= MOST_INTEGERS:
            return Known.of(np.full(sizes, filler, dtype=object), dtype)
        check_size(sizes)
        return torch.full(sizes, filler, dtype=dtype, device=node.device())

    return compute


@operator("Range", sizes=True)
def _range(node: Operator) -> Compute:
    def compute(start: Value, limit: Value, step: Value) -> Value:
        values = (start, limit, step)
        ends = [number(value, "its range") for value in values]
        dtype = start.dtype
        known = are_fixed(ends)
        if known and isinstance(start, Known) and len(range(*ends)) <= MOST_INTEGERS:
            return Known.of(np.array([*range(*ends)], dtype=object), dtype)
        check_size([len(range(*ends))] if known else [])
        return torch.arange(*ends, dtype=dtype, device=node.device())

    return compute


@operator("DepthToSpace")
def _depth_to_space(node: Operator) -> Compute:
    side = node.get("blocksize")
    mode = node.get("mode", "DCR")

    def compute(x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        left = channels // side**2
        if mode == "CRD":
            parts = x.reshape(n, left, side, side, height, width).permute(0, 1, 4, 2, 5, 3)
        else:
            parts = x.reshape(n, side, side, left, height, width).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, left, height * side, width * side)

    return compute


@operator("SpaceToDepth")
def _space_to_depth(node: Operator) -> Compute:
    side = node.get("blocksize")
    if node.get("mode", "DCR") != "DCR":
        raise node.refuse("with mode CRD")

    def compute(x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        parts = x.reshape(n, channels, height // side, side, width // side, side)
        parts = parts.permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, channels * side**2, height // side, width // side)

    return compute


@operator("EyeLike")
def _eye_like(node: Operator) -> Compute:
    if node.get("dtype") is not None or node.get("k", 0):
        raise node.refuse("with dtype or k")
    return lambda x: torch.eye(*x.shape, dtype=x.dtype, device=x.device)
