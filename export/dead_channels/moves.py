"""Operators that move elements: reshaping, transposing, joining and dividing axes."""

from math import prod

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.channels import (
    Channels,
    Keeps,
    replace_constant,
    shape_of,
    spread,
)
from mfac_compress.export.dead_channels.classes import STAYS
from mfac_compress.export.sparse.graph import argument, attributes


def transpose(channels: Channels, node: ir.Node) -> bool:
    """Read a Transpose."""
    x, y = node.inputs[0], node.outputs[0]
    found, known = channels.read(node, x), channels.constants.get(x)
    rank = len(x.shape) if x.shape is not None else 0
    order = attributes(node).get("perm", tuple(reversed(range(rank))))
    for values, array in ((channels.of_value, found), (channels.constants, known)):
        if array is not None:
            values[y] = array.transpose(order)
    return True


def reshape(channels: Channels, node: ir.Node) -> bool:
    """Read Reshape, Flatten, Squeeze or Unsqueeze, by the shapes before and after."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = shape_of(x), shape_of(y)
    parts = None if before is None or after is None else _parts(before, after)
    found, known = channels.read(node, x), channels.constants.get(x)
    result = _regrouped(found, before, after, parts)
    if found is not None and (result is None or not _set_shape(channels, node, result)):
        return False
    if result is not None:
        channels.of_value[y] = result
    known = _regrouped(known, before, after, parts)
    if known is not None:
        channels.constants[y] = known
    return True


def _parts(
    before: tuple[int | str, ...], after: tuple[int | str, ...]
) -> list[tuple[list[int], list[int]]] | None:
    """Divide two shapes of a reshaped value into the shortest parts of equal size.

    Example:
        >>> _parts(("n", 6, 2, 2), ("n", 24)), _parts(("n", 5, 6), ("n", 5, 2, 3))
        ([([0], [0]), ([1, 2, 3], [1])], [([0], [0]), ([1], [1]), ([2], [2, 3])])
    """
    parts, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        a, b = i + 1, j + 1
        if before[i:a] != after[j:b]:
            if before[i:a] == (1,):
                b = j
            elif after[j:b] == (1,):
                a = i
            else:
                while (sizes := (_size(before[i:a]), _size(after[j:b]))) != sizes[::-1]:
                    if None in sizes or a > len(before) or b > len(after):
                        return None
                    a, b = (a + 1, b) if sizes[0] < sizes[1] else (a, b + 1)
                if None in sizes:
                    return None
        parts.append(([*range(i, a)], [*range(j, b)]))
        i, j = a, b
    return parts


def _size(shape: tuple[int | str, ...]) -> int | None:
    """Return the number of elements; None for a shape with open axes."""
    return None if any(isinstance(dim, str) for dim in shape) else prod(shape)


def _regrouped(
    array: np.ndarray | None,
    before: tuple[int | str, ...] | None,
    after: tuple[int | str, ...] | None,
    parts: list[tuple[list[int], list[int]]] | None,
) -> np.ndarray | None:
    """Reshape an array of a value's rank as the value is; None if it cannot be followed."""
    if array is None or parts is None:
        return None
    whole, result = [1] * len(before), [1] * len(after)
    for left, right in parts:
        if any(array.shape[axis] > 1 for axis in left):
            for axis in left:
                whole[axis] = before[axis]
            for axis in right:
                result[axis] = after[axis]
    return np.broadcast_to(array, whole).reshape(result)


def _set_shape(channels: Channels, node: ir.Node, result: np.ndarray) -> bool:
    """Prepare the target of a Reshape for fewer channels; False if it is computed."""
    if node.op_type != "Reshape":
        return True  # they have no lengths
    target = channels.graph.constant(argument(node, 1))
    if target is None:
        return False

    def edit(kept: Keeps) -> None:
        lengths = target.copy()
        for axis, size in enumerate(remaining(kept(result))):
            if result.shape[axis] > 1 and lengths[axis] > 0:
                lengths[axis] = size
        if not np.array_equal(lengths, target):
            replace_constant(node, 1, lengths)

    channels.edits.append(edit)
    return True


def remaining(kept: np.ndarray) -> list[int]:
    """Return along how many places of each axis anything is kept."""
    return [len(each) for each in kept_places(kept)]


def kept_places(kept: np.ndarray) -> list[np.ndarray]:
    """Return, along each axis, the places where anything is kept."""
    axes = range(kept.ndim)
    return [kept.any(axis=tuple(a for a in axes if a != axis)).nonzero()[0] for axis in axes]


def concatenation(channels: Channels, node: ir.Node) -> bool:
    """Read a Concat: along the channels, or of values whose channels go together."""
    shapes, y = [shape_of(value) for value in node.inputs], node.outputs[0]
    if None in shapes:
        return False
    axis = attributes(node)["axis"] % len(shapes[0])
    sizes = [shape[axis] for shape in shapes]
    found = [channels.read(node, value) for value in node.inputs]
    known = [channels.constants.get(value) for value in node.inputs]
    for values, arrays, other in (
        (channels.constants, known, np.nan),
        (channels.of_value, found, STAYS),
    ):
        if all(each is None for each in arrays):
            continue
        lines = [_line(each, axis, size, other) for each, size in zip(arrays, sizes, strict=True)]
        if all(line is not None for line in lines):
            values[y] = spread(np.concatenate(lines), axis, len(shapes[0]))
        elif arrays is found:
            return _join(channels, y, found, axis)
    return True


def _line(array: np.ndarray | None, axis: int, size: int | str, other: float) -> np.ndarray | None:
    """Return an operand's part of a line along an axis; None where it has others, or is open."""
    if isinstance(size, str) or (array is not None and array.size != array.shape[axis]):
        return None
    return np.full(size, other) if array is None or array.size != size else array.ravel()


def _join(channels: Channels, y: ir.Value, found: list[np.ndarray | None], axis: int) -> bool:
    """Couple the channels of operands that are joined along another axis."""
    first = found[0]
    if any(each is None or each.shape != first.shape for each in found) or first.shape[axis] > 1:
        return False
    for each in found[1:]:
        channels.classes.couple(first, each)
    channels.of_value[y] = first
    return True


def division(channels: Channels, node: ir.Node) -> bool:
    """Read a Split."""
    x, shape = node.inputs[0], shape_of(node.inputs[0])
    found, known = channels.read(node, x), channels.constants.get(x)
    if shape is None:
        return False
    axis = attributes(node).get("axis", 0) % len(shape)
    sizes = [shape_of(value) for value in node.outputs]
    if None in sizes or any(isinstance(size[axis], str) for size in sizes):
        return False
    ends = np.cumsum([size[axis] for size in sizes])
    parts = [np.arange(end - size[axis], end) for end, size in zip(ends, sizes, strict=True)]
    for values, array in ((channels.of_value, found), (channels.constants, known)):
        if array is None:
            continue
        divided = array.shape[axis] > 1
        for value, part in zip(node.outputs, parts, strict=True):
            values[value] = np.take(array, part, axis=axis) if divided else array
    if found is not None and found.shape[axis] > 1:
        own = [channels.of_value[value] for value in node.outputs]

        def edit(kept: Keeps) -> None:
            lengths = [remaining(kept(each))[axis] for each in own]
            node.attributes.pop("num_outputs", None)
            replace_constant(node, 1, np.array(lengths, dtype=np.int64))

        channels.edits.append(edit)
    return True


def gathering(channels: Channels, node: ir.Node) -> bool:
    """Read a Gather by constants; the axis that is chosen from keeps its length."""
    x, y, shape = node.inputs[0], node.outputs[0], shape_of(node.inputs[0])
    found, known = channels.read(node, x), channels.constants.get(x)
    if found is None and known is None:
        return True
    indices = channels.graph.constant(node.inputs[1])
    if shape is None or indices is None:
        return False
    axis = attributes(node).get("axis", 0) % len(shape)
    for values, array in ((channels.of_value, found), (channels.constants, known)):
        if array is not None and array.shape[axis] > 1:
            values[y] = np.take(array, indices, axis=axis)
        elif array is not None:
            form = array.shape[:axis] + (1,) * indices.ndim + array.shape[axis + 1 :]
            values[y] = array.reshape(form)
    channels.fixed.add((x, axis))
    return True


def slicing(channels: Channels, node: ir.Node) -> bool:
    """Read a Slice by constants. Among several axes with channels, one that is cut is fixed."""
    x, y, shape = node.inputs[0], node.outputs[0], shape_of(node.inputs[0])
    found, known = channels.read(node, x), channels.constants.get(x)
    if found is None and known is None:
        return True
    ranges = None if shape is None else _ranges(channels, node, shape)
    if ranges is None:
        return False
    for values, array in ((channels.of_value, found), (channels.constants, known)):
        if array is not None:
            at = (
                ranges[axis] if size > 1 else slice(None) for axis, size in enumerate(array.shape)
            )
            values[y] = array[tuple(at)]
    if found is None:
        return True
    cut = [axis for axis in ranges if found.shape[axis] > 1 and ranges[axis] != slice(None)]
    if cut and (len(cut) > 1 or found.size > found.shape[cut[0]] or ranges[cut[0]].step != 1):
        channels.fixed |= {(x, axis) for axis in cut}
    elif cut:
        _set_range(channels, node, found.ravel(), cut[0], ranges[cut[0]])
    return True


def _ranges(
    channels: Channels, node: ir.Node, shape: tuple[int | str, ...]
) -> dict[int, slice] | None:
    """Return what a Slice takes of each axis; None if it is computed, or taken backwards."""
    given = [argument(node, place) for place in range(1, 5)]
    known = [channels.graph.constant(value) for value in given]
    if any(value is not None and array is None for value, array in zip(given, known, strict=True)):
        return None
    starts, ends, axes, steps = known
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    ranges = dict.fromkeys(range(len(shape)), slice(None))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            return None
        ranges[int(axis) % len(shape)] = slice(int(start), int(end), int(step))
    return ranges


def _set_range(
    channels: Channels, node: ir.Node, found: np.ndarray, axis: int, taken: slice
) -> None:
    """Prepare the range of a Slice for fewer channels."""
    start, stop, _ = taken.indices(len(found))
    axes = channels.graph.constant(argument(node, 3))
    places = range(len(found)) if axes is None else [int(each) for each in axes]
    rank = len(node.inputs[0].shape)
    place = next(at for at, each in enumerate(places) if each % rank == axis)
    limits = [channels.graph.constant(node.inputs[at]) for at in (1, 2)]

    def edit(kept: Keeps) -> None:
        for at, limit, end in ((1, limits[0], start), (2, limits[1], stop)):
            changed = limit.copy()
            changed[place] = kept(found[:end]).sum()
            replace_constant(node, at, changed)

    channels.edits.append(edit)


def padding(channels: Channels, node: ir.Node) -> bool:
    """Read a Pad: along the channels it adds constant ones, elsewhere it may add a border."""
    x, y, shape = node.inputs[0], node.outputs[0], shape_of(node.inputs[0])
    found, known = channels.read(node, x), channels.constants.get(x)
    pads = channels.graph.constant(argument(node, 1))
    if shape is None or shape_of(y) is None or pads is None or argument(node, 3) is not None:
        return False
    value = 0.0 if argument(node, 2) is None else channels.graph.scalar(node.inputs[2])
    rank = len(shape)
    if (
        attributes(node).get("mode", b"constant") not in (b"constant", "constant")
        or value is None
        or (pads < 0).any()
    ):
        return False
    source = found if found is not None else known
    if source is None:
        return True
    widened = [axis for axis in range(rank) if pads[axis] or pads[axis + rank]]
    own = [axis for axis in range(rank) if source.shape[axis] > 1]
    if len(own) != 1:
        return False
    axis = own[0]
    before, after = int(pads[axis]), int(pads[axis + rank])
    known = np.full(source.shape, np.nan) if known is None or known.size != source.size else known
    if set(widened) - {axis}:
        known = np.where(known == value, known, np.nan)
    form = list(source.shape)
    form[axis] += before + after
    sides = [np.full(before, value), known.ravel(), np.full(after, value)]
    channels.constants[y] = np.concatenate(sides).reshape(form)
    if found is None:
        return True
    left, right = channels.classes.new(before), channels.classes.new(after)
    channels.of_value[y] = np.concatenate([left, found.ravel(), right]).reshape(form)
    if before or after:

        def edit(kept: Keeps) -> None:
            lengths = pads.copy()
            lengths[axis], lengths[axis + rank] = kept(left).sum(), kept(right).sum()
            replace_constant(node, 1, lengths)

        channels.edits.append(edit)
    return True
