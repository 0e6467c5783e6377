"""Attention between sparse layers, as one operator.

    Y = softmax(scale · Q Kᵀ + mask) V,  heads side by side

ONNX Runtime transposes Q, K, V and Y in memory and keeps the weights of all heads. Exporters write
the layouts in many ways, so they are recognised by what they do to numbers: the nodes between the
layers and the products run on the positions of the elements.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.session import load
from mfac_compress.export.sparse.compose import remove_unused
from mfac_compress.export.sparse.files import temporary_file
from mfac_compress.export.sparse.graph import (
    Graph,
    attributes,
    is_open,
    is_operator,
    needed_inputs,
    only_user,
    users,
)
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.export.sparse.probe import Feeds, shapes_of, unoptimised

Shapes = Mapping[str, tuple[int, ...]]
_LAYOUT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity")
_SCALED = ("Mul", "Div")
_MAX_STEPS = 12
_BATCH = "batch of all inputs"
_RADIX = 4096
"""Positions are traced in two digits, so that products with a scale stay exact enough."""
_MOST_ELEMENTS = _RADIX**2


@dataclass(frozen=True)
class Attention:
    """The nodes between three values of layers and one that the next layer reads.

    Attributes:
        name: Name of its softmax.
        query: ``[batch, queries, features]``, float32; head h is ``features[offset + h · size:][:
            size]``.
        key: ``[batch, keys, features]``.
        value: ``[batch, keys, features]``.
        y: ``[batch, queries, heads · size]``.
        mask: Added to the scores, ``[batch or 1, heads or 1, queries or 1, keys]``; None if nothing
            is.
        heads: Number of heads.
        size: Features of a head.
        offsets: Of the first head in queries, keys and values.
        scale: Positive.
        nan_to_zero: Whether the weights of a query become zeros if any is NaN.
    """

    name: str
    query: str
    key: str
    value: str
    y: str
    mask: str | None
    heads: int
    size: int
    offsets: tuple[int, int, int]
    scale: float
    nan_to_zero: bool


@dataclass(frozen=True, eq=False)
class Candidate:
    """A softmax between two products of activations, and what may lead to and from these.

    Attributes:
        softmax: The node.
        operands: Of the products: queries, transposed keys, values.
        sources: For each operand the values that it may be a layout of, the nearest first.
        product: Of weights and values.
        results: The values that may be a layout of the product, the nearest first.
        mask: What is added to the scores, if anything is.
        scale: Of the scores before the mask.
        nan_to_zero: As for :class:`Attention`.
    """

    softmax: ir.Node
    operands: tuple[ir.Value, ir.Value, ir.Value]
    sources: tuple[Sequence[ir.Value], ...]
    product: ir.Value
    results: Sequence[ir.Value]
    mask: ir.Value | None
    scale: float
    nan_to_zero: bool

    @property
    def names(self) -> set[str]:
        """Names of the values whose shapes decide whether it is an attention."""
        values = [*self.operands, self.product, *self.results, *(v for s in self.sources for v in s)]
        return {value.name for value in (*values, *([self.mask] if self.mask else []))}


def find_attention(graph: Graph, feeds: Feeds, seconds: float | None = None) -> list[Attention]:
    """Find the attention of a graph.

    Args:
        graph: Its nodes have unique names.
        feeds: Inputs of the model. It is also tried on longer ones, if its axes are open.
        seconds: Time limit of a run of the model; None for no limit.
    """
    found = (_candidate(graph, node) for node in graph.nodes if is_operator(node, "Softmax"))
    candidates = [each for each in found if each is not None]
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


def _candidate(graph: Graph, softmax: ir.Node) -> Candidate | None:
    if not _along_last_axis(graph, softmax):
        return None
    scores = _scores(graph, softmax.inputs[0])
    weights, nan_to_zero = _weights(graph, softmax.outputs[0])
    after = only_user(weights) if weights is not None else None
    if scores is None or not is_operator(after, "MatMul") or after.inputs[0] is not weights:
        return None
    product, mask, scale = scores
    operands = (*product.inputs, after.inputs[1])
    sources = tuple(list(_before(graph, operand)) for operand in operands)
    results = list(_after(after.outputs[0]))
    return Candidate(
        softmax, operands, sources, after.outputs[0], results, mask, scale, nan_to_zero
    )


def _along_last_axis(graph: Graph, softmax: ir.Node) -> bool:
    given = attributes(softmax)
    if "axis" not in given:
        return graph.model.opset_imports.get("", 0) >= 13  # the second axis before
    return given["axis"] in (-1, 3)  # the scores have four


def _scores(graph: Graph, z: ir.Value) -> tuple[ir.Node, ir.Value | None, float] | None:
    """Return the product whose scaled result is z, perhaps with a mask, the mask and the scale."""
    node = z.producer()
    if not is_operator(node, "Add"):
        found = _scaled_product(graph, z)
        return (found[0], None, found[1]) if found and only_user(z) else None
    for place in (0, 1):
        found = _scaled_product(graph, node.inputs[place])
        if found and only_user(z) and only_user(node.inputs[place]):
            return found[0], node.inputs[1 - place], found[1]
    return None


def _scaled_product(graph: Graph, z: ir.Value) -> tuple[ir.Node, float] | None:
    """Return the product of two activations that z is a multiple of, and the factor."""
    scale = 1.0
    for _ in range(_MAX_STEPS):
        node = z.producer()
        if is_operator(node, "MatMul"):
            constant = any(graph.constant(each) is not None for each in node.inputs)
            return None if constant else (node, scale)
        step = _multiple(graph, node)
        if step is None or (only_user(step[0]) is None):
            return None
        z, factor = step
        scale *= factor
    return None


def _multiple(graph: Graph, node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """Return the input of which a node computes a multiple, and the factor."""
    if not is_operator(node, *_SCALED):
        return None
    for place in (0, 1) if node.op_type == "Mul" else (0,):
        factor = graph.scalar(node.inputs[1 - place])
        if factor:
            return node.inputs[place], factor if node.op_type == "Mul" else 1 / factor
    return None


def _weights(graph: Graph, y: ir.Value) -> tuple[ir.Value | None, bool]:
    """Return the weights that a softmax y makes, and whether NaNs among them are made zeros."""
    if only_user(y) is not None:
        return y, False
    readers = {node.op_type: node for node in users(y) if node.domain == ""}
    if y.is_graph_output() or len(users(y)) != 2 or set(readers) != {"IsNaN", "Where"}:
        return None, False
    test, choice = readers["IsNaN"], readers["Where"]
    condition, then, otherwise = choice.inputs
    zero = graph.scalar(then) == 0
    fits = condition is test.outputs[0] and only_user(condition) is choice and otherwise is y
    return (choice.outputs[0], True) if zero and fits else (None, False)


def _before(graph: Graph, value: ir.Value) -> Iterator[ir.Value]:
    """Yield the values of which a value may be a layout, the nearest first."""
    for _ in range(_MAX_STEPS):
        yield value
        node = value.producer()
        step = _multiple(graph, node)
        if step is not None:
            value = step[0]
        elif is_operator(node, *_LAYOUT):
            value = node.inputs[0]
        else:
            return


def _after(value: ir.Value) -> Iterator[ir.Value]:
    """Yield the values that may be a layout of a value, the nearest first."""
    for _ in range(_MAX_STEPS):
        yield value
        node = only_user(value)
        if not is_operator(node, *_LAYOUT) or node.inputs[0] is not value:
            return
        value = node.outputs[0]


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


def _offset(
    positions: np.ndarray, source: tuple[int, ...], heads: int, size: int
) -> int | None:
    """Return the feature at which the first head begins, if the heads ``[batch, heads, length,
    size]`` lie side by side in a source; else None."""
    batch, length, features = source
    offset = int(positions.flat[0])
    if offset + heads * size > features:
        return None
    rows = np.arange(batch * length).reshape(batch, 1, length, 1) * features
    columns = np.arange(heads * size).reshape(1, heads, 1, size)
    return offset if np.array_equal(positions, rows + columns + offset) else None


def _mask_fits(
    mask: ir.Value | None, query: np.ndarray, key: np.ndarray, shapes: Shapes
) -> bool:
    """Whether a mask can be an input of the operator."""
    if mask is None:
        return True
    shape = shapes.get(mask.name, ())
    full = (*query.shape[:3], key.shape[2])
    if len(shape) != 4 or shape[3] != full[3]:
        return False
    return all(length in (1, all_) for length, all_ in zip(shape, full, strict=True))


def replace_attention(model: ir.Model, found: Sequence[Attention]) -> int:
    """Replace attention in a model.

    Args:
        model: Changed in place. Its values have the names of the graph in which it was found, or
            are not there: what a sparse operator computes.
        found: What :func:`confirm_attention` confirmed.
    Returns:
        The number of nodes that replace it.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    values |= dict(model.graph.initializers)
    count = 0
    for each in found:
        read = [each.query, each.key, each.value, *([each.mask] if each.mask else [])]
        if not values.keys() >= {*read, each.y}:
            continue
        old = values[each.y]
        node = _node(each, [values[name] for name in read])
        (new,), last = node.outputs, old.producer()
        new.meta.update(old.meta)
        ir.convenience.replace_nodes_and_values(model.graph, last, [last], [node], [old], [new])
        values[each.y] = new
        count += 1
    remove_unused(model.graph)
    return count


def _node(found: Attention, inputs: Sequence[ir.Value]) -> ir.Node:
    places = ("query_offset", "key_offset", "value_offset")
    given = {
        "num_heads": found.heads,
        "head_size": found.size,
        **dict(zip(places, found.offsets, strict=True)),
        "scale": found.scale,
        "nan_to_zero": int(found.nan_to_zero),
    }
    return ir.node(
        "Attention",
        inputs,
        dict(sorted(given.items())),
        domain=DOMAIN,
        name=found.name,
        outputs=[ir.Value(name=found.y)],
    )
