"""Operators that take parts of tensors, and put them together."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.export.from_onnx.registry import Compute, Operator, only_integers, operator
from mfac_compress.export.from_onnx.values import (
    Known,
    Value,
    are_fixed,
    as_tensors,
    check_size,
    number,
    numbers,
)

_FAR = 2**31 - 1
"""Ends of slices from here on mean the end of the axis."""


@operator("Concat", sizes=True)
def _concat(node: Operator) -> Compute:
    axis = node.get("axis")

    def compute(*values: Value) -> Value:
        if only_integers(values):
            joined = np.concatenate([value.array for value in values], axis)
            return Known.of(joined, values[0].dtype)
        tensors = as_tensors(values, node.device())
        if node.batch == 1 and axis % tensors[0].ndim:
            # What a file for one sample keeps as a constant, such as a class token, goes to each.
            rows = next((t.shape[0] for t in tensors if not _is_one(t.shape[0])), 1)
            tensors = [t.expand(rows, *t.shape[1:]) if _is_one(t.shape[0]) else t for t in tensors]
        return torch.cat(tensors, axis)

    return compute


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


@operator("Split", sizes=True)
def _split(node: Operator) -> Compute:
    axis, fixed = node.get("axis", 0), node.get("split")
    parts = node.get("num_outputs", node.outputs)

    def compute(x: Value, sizes: Value = None) -> tuple[Value, ...]:
        chosen = fixed if sizes is None else numbers(sizes, "its sizes")
        length = x.array.shape[axis] if isinstance(x, Known) else x.shape[axis]
        if chosen is None:
            each = -(-length // parts)
            chosen = [each] * (parts - 1) + [length - each * (parts - 1)]
        if isinstance(x, Known):
            pieces = np.split(x.array, np.cumsum(chosen)[:-1], axis)
            return tuple(Known.of(piece, x.dtype) for piece in pieces)
        return torch.split(x, [*chosen], axis)

    return compute


@operator("Slice", sizes=True)
def _slice(node: Operator) -> Compute:
    fixed = [node.get(name) for name in ("starts", "ends", "axes")]

    def compute(x: Value, *given: Value) -> Value:
        if given:
            fields = [None if v is None else numbers(v, "where it cuts") for v in given]
        else:
            fields = fixed
        starts, ends, axes, steps = (*fields, None, None)[:4]
        if isinstance(x, Known) and not are_fixed([*starts, *ends]):
            (x,) = as_tensors((x,), node.device())
        axes = range(len(starts)) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            x = _cut(x, start, end, int(axis), int(step))
        return x

    return compute


def _cut(x: Value, start: Any, end: Any, axis: int, step: int) -> Value:
    if isinstance(x, Known):
        place = [slice(None)] * x.array.ndim
        start, end = int(start), int(end)
        if step < 0:
            end = None if end < -x.array.shape[axis] else end
        place[axis] = slice(start, end, step)
        return Known.of(x.array[tuple(place)], x.dtype)
    axis %= x.ndim
    if step < 0:
        return _cut_backwards(x, start, end, axis, -step)
    end = None if isinstance(end, int) and end >= _FAR else end
    place = [slice(None)] * x.ndim
    place[axis] = slice(start, end, step)
    return x[tuple(place)]


def _cut_backwards(x: Tensor, start: Any, end: Any, axis: int, step: int) -> Tensor:
    length = x.shape[axis]
    positions = [*range(length)][slice(start, None if end < -length else end, -step)]
    return x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))


@operator("Gather", sizes=True)
def _gather(node: Operator) -> Compute:
    axis = node.get("axis", 0)

    def compute(x: Value, index: Value) -> Value:
        if only_integers((x, index)) and are_fixed(numbers(index)):
            places = index.array.astype(np.int64)
            return Known.of(np.take(x.array, places, axis), x.dtype)
        if isinstance(index, Known) and index.array.ndim == 0 and are_fixed(numbers(index)):
            (x,) = as_tensors((x,), node.device())
            return x.select(axis, index.array.item())
        x, index = as_tensors((x, index), node.device())
        place = axis % x.ndim
        index = _not_negative(index, x.shape[place])
        if place == 0 and x.ndim == 2:
            return F.embedding(index, x)
        taken = x.index_select(place, index.flatten())
        return taken.reshape(*x.shape[:place], *index.shape, *x.shape[place + 1 :])

    return compute


def _not_negative(index: Tensor, length: Any) -> Tensor:
    """Indices counted from the front, as int64."""
    index = index.long()
    return torch.where(index < 0, index + length, index)


@operator("GatherElements")
def _gather_elements(node: Operator) -> Compute:
    axis = node.get("axis", 0)
    return lambda x, index: torch.gather(x, axis, _not_negative(index, x.shape[axis]))


@operator("GatherND")
def _gather_nd(node: Operator) -> Compute:
    if node.get("batch_dims", 0):
        raise node.refuse("with batch_dims")

    def compute(x: Tensor, index: Tensor) -> Tensor:
        places = [
            _not_negative(part, length)
            for part, length in zip(index.unbind(-1), x.shape, strict=False)
        ]
        return x[tuple(places)]

    return compute


@operator("ScatterElements")
def _scatter_elements(node: Operator) -> Compute:
    axis = node.get("axis", 0)
    if node.get("reduction", "none") != "none":
        raise node.refuse("with a reduction")
    return lambda x, index, new: x.scatter(axis, _not_negative(index, x.shape[axis]), new)


@operator("ScatterND")
def _scatter_nd(node: Operator) -> Compute:
    if node.get("reduction", "none") != "none":
        raise node.refuse("with a reduction")

    def compute(x: Tensor, index: Tensor, new: Tensor) -> Tensor:
        places = [
            _not_negative(part, length)
            for part, length in zip(index.unbind(-1), x.shape, strict=False)
        ]
        return x.index_put(tuple(places), new)

    return compute


@operator("Pad", sizes=True)
def _pad(node: Operator) -> Compute:
    mode = node.get("mode", "constant")
    how = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}.get(mode)
    if how is None:
        raise node.refuse(f"with mode {mode}")

    def compute(x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> Value:
        (x,) = as_tensors((x,), node.device())
        both = node.get("pads") if pads is None else numbers(pads, "its widths")
        places = range(x.ndim) if axes is None else [a % x.ndim for a in numbers(axes)]
        half = len(both) // 2
        before = dict(zip(places, both[:half], strict=True))
        after = dict(zip(places, both[half:], strict=True))
        # PyTorch counts from the last axis.
        widths = [
            width
            for axis in reversed(range(x.ndim))
            for width in (before.get(axis, 0), after.get(axis, 0))
        ]
        while len(widths) > 2 and widths[-2:] == [0, 0]:
            del widths[-2:]
        check_size([x.shape[a] + before.get(a, 0) + after.get(a, 0) for a in range(x.ndim)])
        if how == "constant":
            fill = node.get("value", 0.0) if value is None else number(value)
            return F.pad(x, widths, value=fill)
        return F.pad(x, widths, mode=how)

    return compute


@operator("Tile", sizes=True)
def _tile(node: Operator) -> Compute:
    def compute(x: Value, repeats: Value) -> Value:
        times = numbers(repeats, "how often it repeats")
        (x,) = as_tensors((x,), node.device())
        check_size([time * length for time, length in zip(times, x.shape, strict=True)])
        return x.repeat(*times)

    return compute


@operator("TopK", sizes=True)
def _top_k(node: Operator) -> Compute:
    axis, largest = node.get("axis", -1), bool(node.get("largest", 1))

    def compute(x: Value, count: Value) -> tuple[Tensor, Tensor]:
        (most,) = numbers(count, "its number")
        # Sorted stably: of equal numbers ONNX takes the first.
        values, places = torch.sort(x, stable=True, dim=axis, descending=largest)
        return values.narrow(axis, 0, most), places.narrow(axis, 0, most)

    return compute


@operator("Trilu", sizes=True)
def _trilu(node: Operator) -> Compute:
    cut = torch.triu if node.get("upper", 1) else torch.tril

    def compute(x: Value, diagonal: Value = None) -> Tensor:
        (x,) = as_tensors((x,), node.device())
        return cut(x, 0 if diagonal is None else number(diagonal))

    return compute


@operator("OneHot", sizes=True)
def _one_hot(node: Operator) -> Compute:
    axis = node.get("axis", -1)

    def compute(index: Value, depth: Value, values: Value) -> Tensor:
        count = int(number(depth, "its depth"))
        index, values = as_tensors((index, values), node.device())
        index = _not_negative(index, count)
        shape = [1] * (index.ndim + 1)
        shape[axis] = count
        classes = torch.arange(count, device=index.device).reshape(shape)
        place = axis % (index.ndim + 1)
        return torch.where(index.unsqueeze(place) == classes, values[1], values[0])

    return compute
