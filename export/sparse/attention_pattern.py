"""What may be attention in a graph, by the kinds of its nodes: a softmax between two products of
activations, with what may be layouts of the products' operands and result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, attributes, is_operator, only_user, users

_LAYOUT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity")
_SCALED = ("Mul", "Div")
_MAX_STEPS = 12
_MAX_SHAPE_STEPS = 6


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
        values = [
            *self.operands,
            self.product,
            *self.results,
            *(v for s in self.sources for v in s),
        ]
        return {value.name for value in (*values, *([self.mask] if self.mask else []))}


def attention_candidates(graph: Graph) -> list[Candidate]:
    """Return what may be attention."""
    found = (_candidate(graph, node) for node in graph.nodes if is_operator(node, "Softmax"))
    return [each for each in found if each is not None]


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
    results = list(_after(graph, after.outputs[0]))
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
        elif _is_layout(graph, node):
            value = node.inputs[0]
        else:
            return


def _is_layout(graph: Graph, node: ir.Node | None) -> bool:
    """Whether a node only moves the elements of its first input, as shapes alone decide."""
    return is_operator(node, *_LAYOUT) and all(
        _follows_from_shapes(graph, value) for value in node.inputs[1:] if value is not None
    )


def _follows_from_shapes(graph: Graph, value: ir.Value, steps: int = _MAX_SHAPE_STEPS) -> bool:
    """Whether a value depends on the shapes of others only, not on what is in them."""
    if graph.constant(value) is not None:
        return True
    node = value.producer()
    if node is None or steps == 0:
        return False
    return node.op_type == "Shape" or all(
        _follows_from_shapes(graph, each, steps - 1) for each in node.inputs if each is not None
    )


def _after(graph: Graph, value: ir.Value) -> Iterator[ir.Value]:
    """Yield the values that may be a layout of a value, the nearest first."""
    for _ in range(_MAX_STEPS):
        yield value
        node = only_user(value)
        if not _is_layout(graph, node) or node.inputs[0] is not value:
            return
        value = node.outputs[0]
