"""Find attention, whose layouts exporters write in many ways.

They are recognised by what they do to numbers: the nodes between the layers and the products run on
the positions of the elements.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.session import load
from mfac_compress.export.sparse.attention import Attention
from mfac_compress.export.sparse.attention_pattern import Candidate, attention_candidates
from mfac_compress.export.sparse.compose import remove_unused
from mfac_compress.export.sparse.files import temporary_file
from mfac_compress.export.sparse.graph import Graph, is_open, needed_inputs
from mfac_compress.export.sparse.probe import Feeds, shapes_of, unoptimised

Shapes = Mapping[str, tuple[int, ...]]
_BATCH = "batch of all inputs"
_RADIX = 4096
"""Positions are traced in two digits, so that products with a scale stay exact enough."""
_MOST_ELEMENTS = _RADIX**2


def find_attention(graph: Graph, feeds: Feeds, seconds: float | None = None) -> list[Attention]:
    """Find the attention of a graph.

    Args:
        graph: Its nodes have unique names.
        feeds: Inputs of the model. It is also tried on longer ones, if its axes are open.
        seconds: Time limit of a run of the model; None for no limit.
    """
    candidates = attention_candidates(graph)
    names = {name for each in candidates for name in each.names}
    probes = []
    # A model that does not run on longer inputs, despite its open axes, has no other shapes.
    for inputs in (feeds, longer_inputs(graph.model, feeds)) if candidates else ():
        with suppress(ValueError):
            probes.append((inputs, shapes_of(graph.model, names, inputs, seconds)))
    confirmed = (_confirmed(graph, each, probes) for each in candidates if probes)
    return [each for each in confirmed if each is not None]


def longer_inputs(model: ir.Model, feeds: Feeds) -> Feeds:
    """Return inputs in which every open axis is longer, each name by another length.

    The values are those given, repeated. Axes without a name stay as they are, except the first,
    the batch.
    """
    names: dict[str, int] = {}
    longer = {}
    for value in needed_inputs(model):
        array = feeds[value.name]
        for axis, size in enumerate(value.shape or ()):
            name = _BATCH if axis == 0 and is_open(size) else getattr(size, "value", None)
            if name is None or not is_open(size):
                continue
            length = array.shape[axis] + names.setdefault(name, len(names) + 1)
            array = array.take(np.arange(length) % max(array.shape[axis], 1), axis)
        longer[value.name] = array
    return longer


@dataclass(frozen=True, eq=False)
class _Ends:
    """The values of a candidate that have the shapes of an attention's inputs and output."""

    sources: tuple[ir.Value, ir.Value, ir.Value]
    y: ir.Value


def _confirmed(
    graph: Graph, candidate: Candidate, probes: Sequence[tuple[Feeds, Shapes]]
) -> Attention | None:
    ends = _ends(candidate, probes[0][1])
    if ends is None:
        return None
    try:
        traces = _Traces(graph, candidate, ends)
        found = [_attention(candidate, ends, traces, *probe) for probe in probes]
    except ValueError:  # its layouts do not run on their own
        return None
    same = found[0] is not None and all(each == found[0] for each in found)
    return found[0] if same else None


def _ends(candidate: Candidate, shapes: Shapes) -> _Ends | None:
    """Choose the ends farthest from the products that have three axes."""

    def last(values: Iterable[ir.Value]) -> ir.Value | None:
        fitting = [value for value in values if len(shapes.get(value.name, ())) == 3]
        return fitting[-1] if fitting else None

    sources, y = [last(values) for values in candidate.sources], last(candidate.results)
    return None if y is None or None in sources else _Ends(tuple(sources), y)


class _Traces:
    """A model of the layouts around an attention, which runs on numbers of our choice."""

    def __init__(self, graph: Graph, candidate: Candidate, ends: _Ends) -> None:
        model = graph.model.clone()
        inner = model.graph
        values = {value.name: value for node in inner for value in node.outputs}
        values |= {value.name: value for value in inner.inputs}
        self._given = {value.name for value in (*ends.sources, candidate.product)}
        ends_of = [*candidate.operands, ends.y]
        self._made = [value.name for value in ends_of]
        for name in self._given:
            new = ir.val(f"given {name}", ir.DataType.FLOAT)
            ir.convenience.replace_all_uses_with(values[name], new)
            inner.inputs.append(new)
            values[name] = new
        inner.outputs.clear()
        for place, name in enumerate(self._made):
            # A copy, for a layout may change nothing.
            copy = ir.val(f"made {place}", ir.DataType.FLOAT)
            inner.append(ir.node("Identity", [values[name]], outputs=[copy]))
            inner.outputs.append(copy)
        remove_unused(inner)
        with temporary_file(model) as path:
            self._session = load(str(path), unoptimised())

    def positions(self, feeds: Feeds, shapes: Shapes) -> list[tuple[np.ndarray, float]] | None:
        """Return where each element of the operands, and of y, comes from.

        Returns:
            For each of them the positions, ``[...]`` of its shape, in the values that it is a
            layout of, and the factor by which it is a multiple. None if one is neither.
        """
        sizes = {name: shapes[name] for name in self._given}
        if any(np.prod(size) > _MOST_ELEMENTS for size in sizes.values()):
            return None
        counts = {name: np.arange(np.prod(size)).reshape(size) for name, size in sizes.items()}
        ones = self._run({name: np.ones(size) for name, size in sizes.items()}, feeds)
        factors = [float(array.flat[0]) for array in ones if array.size]
        if len(factors) < len(ones) or 0.0 in factors:
            return None
        if any(np.any(array != factor) for array, factor in zip(ones, factors, strict=True)):
            return None
        low = self._run({name: count % _RADIX for name, count in counts.items()}, feeds)
        high = self._run({name: count // _RADIX for name, count in counts.items()}, feeds)
        return [
            (np.rint(a / factor) + _RADIX * np.rint(b / factor), factor)
            for a, b, factor in zip(low, high, factors, strict=True)
        ]

    def _run(self, given: Mapping[str, np.ndarray], feeds: Feeds) -> list[np.ndarray]:
        inputs = {f"given {name}": array.astype(np.float32) for name, array in given.items()}
        try:
            made = self._session.run(None, {**feeds, **inputs})
        except Exception as error:
            raise ValueError("the layouts must run on their own") from error
        return [array.astype(np.float64) for array in made]


def _attention(
    candidate: Candidate, ends: _Ends, traces: _Traces, feeds: Feeds, shapes: Shapes
) -> Attention | None:
    """Return the attention if all layouts are those of one, for some inputs."""
    positions = traces.positions(feeds, shapes)
    if positions is None or any(array.ndim != 4 for array, _ in positions[:3]):
        return None
    (query, a), (key, b), (value, c), (y, d) = positions
    heads, size = query.shape[1], query.shape[3]
    key = key.swapaxes(2, 3)
    offsets = [
        _offset(array, shapes[source.name], heads, size)
        for array, source in zip((query, key, value), ends.sources, strict=True)
    ]
    batch, queries = query.shape[0], query.shape[2]
    product = np.arange(query.size).reshape(batch, heads, queries, size)
    side_by_side = product.swapaxes(1, 2).reshape(batch, queries, heads * size)
    scale = a * b * candidate.scale
    fits = None not in offsets and c == d == 1 and np.array_equal(y, side_by_side)
    if not fits or not 0 < scale < np.inf or not _mask_fits(candidate.mask, query, key, shapes):
        return None
    return Attention(
        name=candidate.softmax.name,
        query=ends.sources[0].name,
        key=ends.sources[1].name,
        value=ends.sources[2].name,
        y=ends.y.name,
        mask=candidate.mask.name if candidate.mask else None,
        heads=heads,
        size=size,
        offsets=tuple(offsets),
        scale=scale,
        nan_to_zero=candidate.nan_to_zero,
    )


def _offset(positions: np.ndarray, source: tuple[int, ...], heads: int, size: int) -> int | None:
    """Return the feature at which the first head begins, if the heads ``[batch, heads, length,
    size]`` lie side by side in a source; else None."""
    batch, length, features = source
    offset = int(positions.flat[0])
    if offset + heads * size > features:
        return None
    rows = np.arange(batch * length).reshape(batch, 1, length, 1) * features
    columns = np.arange(heads * size).reshape(1, heads, 1, size)
    return offset if np.array_equal(positions, rows + columns + offset) else None


def _mask_fits(mask: ir.Value | None, query: np.ndarray, key: np.ndarray, shapes: Shapes) -> bool:
    """Whether a mask can be an input of the operator."""
    if mask is None:
        return True
    shape = shapes.get(mask.name, ())
    full = (*query.shape[:3], key.shape[2])
    if len(shape) != 4 or shape[3] != full[3]:
        return False
    return all(length in (1, all_) for length, all_ in zip(shape, full, strict=True))
