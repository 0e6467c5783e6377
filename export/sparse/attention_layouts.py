"""Find attention, whose layouts exporters write in many ways.

They are recognised by what they do to numbers: the nodes between the layers and the products run on
the numbers of the elements.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.attention import Attention
from mfac_compress.export.sparse.attention_pattern import Candidate, attention_candidates
from mfac_compress.export.sparse.attention_traces import Layouts, Trace, numbered
from mfac_compress.export.sparse.graph import Graph, argument, is_operator
from mfac_compress.export.sparse.longer import shapes_at_lengths
from mfac_compress.export.sparse.probe import FLOAT, Feeds, Shapes, types_of

_ANY_LENGTH = 2**31 - 1  # exporters write this end, or a larger one, for none


def find_attention(graph: Graph, feeds: Feeds, seconds: float | None = None) -> list[Attention]:
    """Find the attention of a graph.

    Args:
        graph: Its nodes have unique names.
        feeds: Inputs on which the model runs. It is also tried on longer ones, if axes are open.
        seconds: Time limit of a run of the model; None for no limit.
    Returns:
        The attention that is the same for all inputs that were tried, at most one for a softmax.
    Raises:
        ValueError: If ONNX Runtime cannot load the model or run it on the inputs in time.
    """
    candidates = attention_candidates(graph)
    if not candidates:
        return []
    types = types_of(graph.model, {each.product.name for each in candidates})
    candidates = [each for each in candidates if types[each.product.name] == FLOAT]
    names = {name for each in candidates for name in each.names}
    probes = shapes_at_lengths(graph.model, names, feeds, seconds)
    confirmed = (_confirmed(graph, each, probes) for each in candidates)
    return list({each.name: each for each in confirmed if each is not None}.values())


@dataclass(frozen=True, eq=False)
class _Ends:
    """The values of a candidate that may be an attention's inputs and output."""

    sources: tuple[ir.Value, ir.Value, ir.Value]
    y: ir.Value

    def steps(self, candidate: Candidate) -> Iterator[ir.Node]:
        """Yield the nodes between these and the products."""
        ways = [
            *zip(candidate.sources, self.sources, strict=True),
            (candidate.results[::-1], candidate.product),
        ]
        for way, end in ways:
            for value in way[: way.index(end)]:
                yield value.producer()

    @classmethod
    def of(cls, candidate: Candidate, shapes: Shapes) -> "_Ends | None":
        """Choose the values farthest from the products that have three axes.

        If no result has three, it may be one with two: batch and length in one axis.
        """

        def farthest(values: Sequence[ir.Value], axes: int = 3) -> ir.Value | None:
            return next((v for v in reversed(values) if len(shapes[v.name]) == axes), None)

        sources = [farthest(each) for each in candidate.sources]
        y = farthest(candidate.results) or farthest(candidate.results, axes=2)
        return None if y is None or None in sources else cls(tuple(sources), y)


def _confirmed(
    graph: Graph, candidate: Candidate, probes: Sequence[tuple[Feeds, Shapes]]
) -> Attention | None:
    """Return the attention that a candidate is for all of the inputs; None if it is none."""
    ends = _Ends.of(candidate, probes[0][1])
    if ends is None or not _cuts_alike(graph, ends.steps(candidate), probes):
        return None
    given = [value.name for value in (*ends.sources, candidate.product)]
    try:
        layouts = Layouts(graph.model, given, [v.name for v in (*candidate.operands, ends.y)])
        found = []
        for feeds, shapes in probes:
            numbers = numbered(shapes, given)
            traces = layouts.trace(numbers, feeds)
            found.append(traces and _attention(candidate, ends, numbers, traces, shapes))
    except ValueError:  # its layouts do not run on their own
        return None
    return found[0] if all(each == found[0] for each in found) else None


def _cuts_alike(
    graph: Graph, nodes: Iterable[ir.Node], probes: Sequence[tuple[Feeds, Shapes]]
) -> bool:
    """Whether no Slice among the nodes cuts longer inputs only, like one of the last 512 keys."""
    slices = [node for node in nodes if is_operator(node, "Slice")]
    return all(_cuts_axes(graph, node, shapes) for node in slices for _, shapes in probes)


def _cuts_axes(graph: Graph, node: ir.Node, shapes: Shapes) -> bool:
    """Whether a Slice cuts all of its axes, except those whose bounds are those of any length."""
    before, after = (shapes[value.name] for value in (node.inputs[0], node.outputs[0]))
    starts, ends, axes, steps = (graph.constant(argument(node, place)) for place in (1, 2, 3, 4))
    if len(node.inputs) < 3 or (axes is None and argument(node, 3) is not None):
        return False  # of an older opset, or of axes that are computed
    places = range(len(before)) if axes is None else axes.tolist()
    return all(
        before[axis] != after[axis] or _is_whole(each, starts, ends, steps)
        for each, axis in enumerate(places)
    )


def _is_whole(
    place: int, starts: np.ndarray | None, ends: np.ndarray | None, steps: np.ndarray | None
) -> bool:
    """Whether the bounds of one axis are those of any length: an end that is computed is one that
    shapes decide without comparisons."""
    forwards = steps is None or steps[place] == 1
    begins = starts is not None and starts[place] == 0
    return forwards and begins and (ends is None or ends[place] >= _ANY_LENGTH)


def _attention(
    candidate: Candidate,
    ends: _Ends,
    numbers: Mapping[str, np.ndarray],
    traces: Sequence[Trace],
    shapes: Shapes,
) -> Attention | None:
    """Return the attention if all layouts are those of one, for some inputs."""
    query, key, value, y = (trace.numbers for trace in traces)
    product = numbers[candidate.product.name]
    if any(array.ndim != 4 for array in (query, key, value, product)):
        return None
    if value.shape[3] != query.shape[3]:  # the operator has one size of a head
        return None
    operands = (query, key.swapaxes(2, 3), value)
    sources = [numbers[source.name] for source in ends.sources]
    layout = _layout(operands, sources, product, y)
    # The node has it as a float32.
    scale = float(np.float32(traces[0].factor * traces[1].factor * candidate.scale))
    fits = traces[2].factor == traces[3].factor == 1 and 0 < scale < np.inf
    full = (*query.shape[:3], value.shape[2])
    if layout is None or not fits or not _mask_fits(candidate.mask, full, shapes):
        return None
    offsets, length_first = layout
    return Attention(
        name=candidate.softmax.name,
        query=ends.sources[0].name,
        key=ends.sources[1].name,
        value=ends.sources[2].name,
        y=ends.y.name,
        mask=candidate.mask.name if candidate.mask else None,
        heads=query.shape[1],
        size=query.shape[3],
        offsets=offsets,
        scale=scale,
        nan_to_zero=candidate.nan_to_zero,
        length_first=length_first,
        flat=y.ndim == 2,
    )


def _layout(
    operands: Sequence[np.ndarray],
    sources: Sequence[np.ndarray],
    product: np.ndarray,
    y: np.ndarray,
) -> tuple[tuple[int, int, int], bool] | None:
    """Return where the heads of an attention lie, if they lie side by side.

    Args:
        operands: Numbers of the elements of queries, keys and values, ``[batch, heads, length,
            size]``.
        sources: Numbers of the elements that they may be made of, three axes.
        product: Numbers of the elements of weights times values, ``[batch, heads, length, size]``.
        y: Of which of these the result is made.
    Returns:
        The feature at which the first head begins in each of the sources, and whether the first two
        axes of sources and result are length and batch, not batch and length. None if the layouts
        are others.
    """
    batch, heads, length, size = product.shape
    for length_first in (False, True):
        axes = (1, 0, 2) if length_first else (0, 1, 2)
        rows = [source.transpose(axes) for source in sources]
        offsets = [_offset(a, b, heads) for a, b in zip(operands, rows, strict=True)]
        joined = product.swapaxes(1, 2).reshape(batch, length, heads * size).transpose(axes)
        joined = joined.reshape(-1, heads * size) if y.ndim == 2 else joined
        same_batch = {each.shape[0] for each in rows} == {batch}
        if None not in offsets and same_batch and np.array_equal(joined, y):
            return tuple(offsets), length_first
    return None


def _offset(operand: np.ndarray, source: np.ndarray, heads: int) -> int | None:
    """Return the feature of a source at which the first of the heads begins that lie side by side.

    Args:
        operand: Numbers of the elements of a product's operand, ``[batch, heads, length, size]``.
        source: Numbers of the elements that it may be made of, ``[batch, length, features]``.
        heads: Number of heads.
    Returns:
        The offset; None if the operand is anything else.
    """
    offset = int(operand.flat[0] - source.flat[0])
    width = heads * operand.shape[3]
    if operand.shape[1] != heads or not 0 <= offset <= source.shape[2] - width:
        return None
    rows = source[..., offset : offset + width].reshape(*source.shape[:2], heads, -1)
    return offset if np.array_equal(operand, rows.swapaxes(1, 2)) else None


def _mask_fits(mask: ir.Value | None, full: tuple[int, ...], shapes: Shapes) -> bool:
    """Whether a mask can be an input of the operator.

    Args:
        mask: The mask, if there is one.
        full: Its shape if nothing is broadcast: batch, heads, queries, keys.
        shapes: Of values, by name.
    """
    if mask is None:
        return True
    shape = shapes[mask.name]
    if not 1 <= len(shape) <= 4 or shape[-1] != full[3]:
        return False
    last = full[4 - len(shape) :]
    return all(length in (1, whole) for length, whole in zip(shape, last, strict=True))
