"""Walk through ONNX graphs and the graphs within them."""

from collections.abc import Iterable, Iterator

import onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in a node's attributes, but not those nested in them."""
    for part in node.attribute:
        if part.type == onnx.AttributeProto.GRAPH:
            yield part.g
        elif part.type == onnx.AttributeProto.GRAPHS:
            yield from part.graphs


def nested(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs nested in its nodes, at any depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from nested(inner)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a graph, also those in attributes and in the graphs of its nodes.

    A sparse tensor is given as its two tensors: values and indices.
    """
    for each in nested(graph):
        yield from each.initializer
        yield from _parts(each.sparse_initializer)
        for node in each.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield from _parts([attribute.sparse_tensor])
                yield from _parts(attribute.sparse_tensors)


def _parts(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for each in sparse:
        yield each.values
        yield each.indices
