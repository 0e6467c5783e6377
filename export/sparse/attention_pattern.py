"""What may be attention in a graph, by the kinds of its nodes: a softmax between two products of
activations, with what may be layouts of the products' operands and result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mfac_compress.export.sparse.data_free import DataFree
from mfac_compress.export.sparse.graph import Graph, attributes, is_operator, only_user, users

_LAYOUT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity")
_SCALED = ("Mul", "Div")
_MAX_STEPS = 20


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
        values = {self.product, *self.results, *(v for source in self.sources for v in source)}
        return {value.name for value in (values | {self.mask} if self.mask else values)}


def attention_candidates(graph: Graph) -> list[Candidate]:
    """Return what may be attention; two for a softmax of a sum of two products."""
    softmaxes = [node for node in graph.nodes if is_operator(node, "Softmax")]
    free = DataFree(graph) if softmaxes else None
    return [each for softmax in softmaxes for each in _candidates(graph, free, softmax)]


def _candidates(graph: Graph, free: DataFree, softmax: ir.Node) -> Iterator[Candidate]:
    weights, nan_to_zero = _weights(graph, softmax.outputs[0])
    after = only_user(weights) if weights is not None else None
    fits = is_operator(after, "MatMul") and after.inputs[0] is weights
    if not fits or not _along_last_axis(graph, softmax):
        return
    results = list(_after(free, after.outputs[0]))
    for product, mask, scale in _scores(graph, softmax.inputs[0]):
        operands = (*product.inputs, after.inputs[1])
        if all(graph.constant(operand) is None for operand in operands):
            sources = tuple(list(_before(graph, free, operand)) for operand in operands)
            yield Candidate(
                softmax, operands, sources, after.outputs[0], results, mask, scale, nan_to_zero
            )


def _along_last_axis(graph: Graph, softmax: ir.Node) -> bool:
    """Whether a softmax is along the last axis, if its input has four."""
    given = attributes(softmax)
    if "axis" not in given:
        return graph.model.opset_imports.get("", 0) >= 13  # the second axis before
    return given["axis"] in (-1, 3)


def _scores(graph: Graph, z: ir.Value) -> Iterator[tuple[ir.Node, ir.Value | None, float]]:
    """Yield the products of which z is a multiple, perhaps with a mask; the masks; the factors."""
    if only_user(z) is None:
        return
    node = z.producer()
    sums = (node.inputs, node.inputs[::-1]) if is_operator(node, "Add") else ((z, None),)
    for scaled, mask in sums:
        found = _scaled_product(graph, scaled)
        if found and only_user(scaled):
            yield found[0], mask, found[1]


def _scaled_product(graph: Graph, z: ir.Value) -> tuple[ir.Node, float] | None:
    """Return the product of which z is a multiple, and the factor."""
    scale = 1.0
    for _ in range(_MAX_STEPS):
        node = z.producer()
        if is_operator(node, "MatMul"):
            return node, scale
        step = _multiple(graph, node)
        if step is None or only_user(step[0]) is None:
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
    readers = {
        node.op_type: node for node in users(y) if node.domain == "" and node.graph is y.graph
    }
    if y.is_graph_output() or len(users(y)) != 2 or set(readers) != {"IsNaN", "Where"}:
        return None, False
    test, choice = readers["IsNaN"], readers["Where"]
    condition, then, otherwise = choice.inputs
    zero = graph.scalar(then) == 0
    fits = condition is test.outputs[0] and only_user(condition) is choice and otherwise is y
    return (choice.outputs[0], True) if zero and fits else (None, False)


def _before(graph: Graph, free: DataFree, value: ir.Value) -> Iterator[ir.Value]:
    """Yield the values of which a value may be a layout, the nearest first."""
    for _ in range(_MAX_STEPS):
        yield value
        node = value.producer()
        step = _multiple(graph, node)
        if step is not None:
            value = step[0]
        elif _is_layout(free, node):
            value = node.inputs[0]
        else:
            return


def _after(free: DataFree, value: ir.Value) -> Iterator[ir.Value]:
    """Yield the values that may be a layout of a value, the nearest first."""
    for _ in range(_MAX_STEPS):
        yield value
        node = only_user(value)
        if not _is_layout(free, node) or node.inputs[0] is not value or len(node.outputs) != 1:
            return
        value = node.outputs[0]


def _is_layout(free: DataFree, node: ir.Node | None) -> bool:
    """Whether a node only moves the elements of its first input, as shapes alone decide."""
    return is_operator(node, *_LAYOUT) and all(map(free.has_data, node.inputs[1:]))
