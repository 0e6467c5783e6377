"""Find the layers of a graph, and the nodes that one sparse operator can compute for each."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx

from mfac_compress.export.graphs import subgraphs
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.activation import add_activation
from mfac_compress.export.sparse.patterns.batchnorm import fold_batchnorm
from mfac_compress.export.sparse.patterns.conv import match_conv
from mfac_compress.export.sparse.patterns.dequantised import dequantised_constant
from mfac_compress.export.sparse.patterns.gelu import add_gelu
from mfac_compress.export.sparse.patterns.gemm import match_gemm
from mfac_compress.export.sparse.patterns.matmul import add_bias, match_matmul
from mfac_compress.export.sparse.patterns.other_quantised import unsupported_reason
from mfac_compress.export.sparse.patterns.quantised_conv import match_quantised_conv
from mfac_compress.export.sparse.patterns.quantised_gemm import match_quantised_gemm
from mfac_compress.export.sparse.patterns.quantised_matmul import match_quantised_matmul
from mfac_compress.export.sparse.patterns.residual import add_residual
from mfac_compress.export.sparse.patterns.selection import match_selection
from mfac_compress.export.sparse.quantised_operator import QuantisedOperator

Shapes = Mapping[str, tuple[int, ...]]
_LAYERS = {"Gemm": match_gemm, "MatMul": match_matmul, "Conv": match_conv}
_QUANTISED = {
    "Gemm": match_quantised_gemm,
    "MatMul": match_quantised_matmul,
    "Conv": match_quantised_conv,
}
_LEFT_ALONE = {"ConvTranspose": "sparse operators do not compute transposed convolutions"}
Operator = SparseOperator | QuantisedOperator


@dataclass(frozen=True)
class Layer:
    """A layer of the graph, with the sparse operator that could replace it."""

    node: onnx.NodeProto
    found: Operator | Unsupported
    position: int | None
    """None in a subgraph or a function."""


def find_layers(graph: Graph) -> list[Layer]:
    """Find all Gemm, MatMul, Conv and ConvTranspose nodes and their other forms, not yet fused.

    Args:
        graph: Its nodes must have unique names.
    """
    layers = []
    for position, node in enumerate(graph.nodes):
        found = _match(graph, position)
        if found is not None:
            layers.append(Layer(node, found, position))
        for inner in _inner_layers(node):
            reason = Unsupported(f"it is inside the {node.op_type} node {node.name}")
            layers.append(Layer(inner, reason, None))
    for function in graph.model.functions:
        for inner in _layers_among(function.node):
            reason = Unsupported(
                f"it is inside the function {function.name}: give the file with its functions "
                "inlined (onnx.inliner)"
            )
            layers.append(Layer(inner, reason, None))
    return layers


def _match(graph: Graph, position: int) -> Operator | Unsupported | None:
    """Return the operator of a node, or why there is none; None if the node is not a layer."""
    node = graph.nodes[position]
    if graph.is_operator(position, *_LAYERS):
        matches = _QUANTISED if _is_quantised(graph, node) else _LAYERS
        return matches[node.op_type](graph, position)
    left_alone = graph.is_operator(position, *_LEFT_ALONE)
    reason = _LEFT_ALONE[node.op_type] if left_alone else unsupported_reason(node)
    return None if reason is None else Unsupported(reason)


def _is_quantised(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a layer computes with quantised values, not only stores its weight quantised.

    The product of two activations can be quantised, too.
    """
    producer = graph.producer(node.input[0])
    of_floats = producer is None or graph.nodes[producer].op_type != "DequantizeLinear"
    return dequantised_constant(graph, node.input[1]) is not None and not (
        of_floats and graph.constant(node.input[1]) is not None
    )


def fuse(graph: Graph, layers: list[Layer], shapes: Shapes) -> list[Operator]:
    """Fuse each layer's operator with what follows it: bias, batch norm, residual, activation.

    Args:
        graph: The graph of the layers.
        layers: As :func:`find_layers` returns them.
        shapes: The shape of every value that a layer could add, at a batch size other than 1.
    Returns:
        Operators whose nodes do not overlap, including selections, in the graph's order.
    """
    taken: set[int] = set()
    operators = []
    for layer in layers:
        if isinstance(layer.found, QuantisedOperator):  # fused already
            taken |= set(layer.found.nodes)
            operators.append(layer.found)
        if isinstance(layer.found, SparseOperator):
            operator = _extend(graph, layer.found, shapes, taken)
            taken |= set(operator.nodes)
            operators.append(operator)
    for position in range(len(graph.nodes)):
        if position not in taken:
            selection = match_selection(graph, position, shapes)
            if selection is not None and not taken & set(selection.nodes):
                taken |= set(selection.nodes)
                operators.append(selection)
    return sorted(operators, key=lambda operator: operator.nodes[-1])


def _extend(
    graph: Graph, operator: SparseOperator, shapes: Shapes, taken: set[int]
) -> SparseOperator:
    steps = (
        add_bias,
        fold_batchnorm,
        lambda graph, operator: add_residual(graph, operator, shapes),
        add_activation,
        add_gelu,
    )
    for step in steps:
        longer = step(graph, operator)
        # In a sum of two layers, one takes the other as its residual.
        if longer is not None and not taken & set(longer.nodes):
            operator = longer
    return operator


def _inner_layers(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for graph in subgraphs(node):
        yield from _layers_among(graph.node)


def _layers_among(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        if node.op_type in (*_LAYERS, *_LEFT_ALONE) or unsupported_reason(node):
            yield node
        yield from _inner_layers(node)
