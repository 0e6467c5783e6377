"""Find the layers of a graph, and the nodes that one sparse operator can compute for each."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, is_operator
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
from mfac_compress.export.sparse.patterns.quantised_pool import add_max_pool
from mfac_compress.export.sparse.patterns.quantised_residual import add_quantised_residual
from mfac_compress.export.sparse.patterns.residual import add_residual
from mfac_compress.export.sparse.patterns.rounding import add_rounding
from mfac_compress.export.sparse.patterns.selection import match_selection

Shapes = Mapping[str, tuple[int, ...]]
_LAYERS = {"Gemm": match_gemm, "MatMul": match_matmul, "Conv": match_conv}
_QUANTISED = {
    "Gemm": match_quantised_gemm,
    "MatMul": match_quantised_matmul,
    "Conv": match_quantised_conv,
}
_LEFT_ALONE = {"ConvTranspose": "sparse operators do not compute transposed convolutions"}


@dataclass(frozen=True)
class Layer:
    """A layer of the graph, with the sparse operator that could replace it."""

    node: ir.Node
    found: SparseOperator | Unsupported
    is_inner: bool = False
    """Whether it is in a subgraph or a function."""


def find_layers(graph: Graph) -> list[Layer]:
    """Find all Gemm, MatMul, Conv and ConvTranspose nodes and their other forms, not yet fused.

    Args:
        graph: Its nodes must have unique names.
    """
    layers = []
    for node in graph.nodes:
        found = _match(graph, node)
        if found is not None:
            layers.append(Layer(node, found))
        reason = Unsupported(f"it is inside the {node.op_type} node {node.name}")
        inner = _layers_among(each for part in _subgraphs(node) for each in part.all_nodes())
        layers += [Layer(each, reason, is_inner=True) for each in inner]
    for function in graph.model.functions.values():
        reason = Unsupported(
            f"it is inside the function {function.name}: give the file with its functions "
            "inlined (onnx.inliner)"
        )
        inner = _layers_among(function.all_nodes())
        layers += [Layer(each, reason, is_inner=True) for each in inner]
    return layers


def _match(graph: Graph, node: ir.Node) -> SparseOperator | Unsupported | None:
    """Return the operator of a node, or why there is none; None if the node is not a layer."""
    if is_operator(node, *_LAYERS):
        matches = _QUANTISED if _is_quantised(graph, node) else _LAYERS
        return matches[node.op_type](graph, node)
    left_alone = is_operator(node, *_LEFT_ALONE)
    reason = _LEFT_ALONE[node.op_type] if left_alone else unsupported_reason(node)
    return None if reason is None else Unsupported(reason)


def _is_quantised(graph: Graph, node: ir.Node) -> bool:
    """Whether a layer computes with quantised values, not only stores its weight quantised.

    The product of two activations can be quantised, too.
    """
    x, weight = node.inputs[:2]
    producer = x.producer()
    of_floats = producer is None or producer.op_type != "DequantizeLinear"
    return dequantised_constant(graph, weight) is not None and not (
        of_floats and graph.constant(weight) is not None
    )


def fuse(graph: Graph, layers: list[Layer], shapes: Shapes) -> list[SparseOperator]:
    """Fuse each layer's operator with what follows it: bias, batch norm, residual, activation,
    rounding to bytes, and a residual or pooling of these.

    Args:
        graph: The graph of the layers.
        layers: As :func:`find_layers` returns them.
        shapes: The shape of every value that a layer could add, at a batch size other than 1.
    Returns:
        Operators whose nodes do not overlap, including selections, in the graph's order.
    """
    taken: set[ir.Node] = set()
    operators = []
    for layer in layers:
        if isinstance(layer.found, SparseOperator):
            operator = _extend(graph, layer.found, shapes, taken)
            taken |= set(operator.nodes)
            operators.append(operator)
    for node in graph.nodes:
        if node not in taken:
            selection = match_selection(graph, node, shapes)
            if selection is not None and not taken & set(selection.nodes):
                taken |= set(selection.nodes)
                operators.append(selection)
    return sorted(operators, key=lambda operator: graph.position[operator.nodes[-1]])


def _extend(
    graph: Graph, operator: SparseOperator, shapes: Shapes, taken: set[ir.Node]
) -> SparseOperator:
    steps = (
        add_bias,
        fold_batchnorm,
        lambda graph, operator: add_residual(graph, operator, shapes),
        add_activation,
        add_gelu,
    )
    for step in steps:
        longer = step(graph, operator) if operator.can_fuse else None
        # In a sum of two layers, one takes the other as its residual.
        if longer is not None and not taken & set(longer.nodes):
            operator = longer
    for longer in (
        add_rounding(graph, operator),
        add_quantised_residual(graph, operator, shapes),
        add_max_pool(graph, operator, shapes),
    ):
        if longer is not None and not taken & set(longer.nodes):
            return longer
    return operator


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs in a node's attributes, but not those nested in them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value


def _layers_among(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    kinds = (*_LAYERS, *_LEFT_ALONE)
    return [node for node in nodes if node.op_type in kinds or unsupported_reason(node)]
