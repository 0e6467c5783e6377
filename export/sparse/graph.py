"""Who makes and who uses each value of an ONNX model's main graph."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mfac_compress.export.graphs import subgraphs

_STANDARD = ("", "ai.onnx")


class Graph:
    """An index of a model's main graph, which it never changes.

    Nodes are named by their position. A value that a subgraph (of If, Loop, Scan) reads is used at
    the position of the node that holds the subgraph.

    Args:
        model: Nodes in topological order, as ONNX asks for.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self._inputs = {value.name for value in model.graph.input}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers: dict[str, int] = {}
        self._users: dict[str, list[int]] = defaultdict(list)
        for position, node in enumerate(self.nodes):
            for name in node.output:
                self._producers[name] = position
            for name in filter(None, values_read(node)):
                self._users[name].append(position)

    def users(self, name: str) -> list[int]:
        """Positions of the nodes that read a value, once for each time they do."""
        return self._users.get(name, [])

    def producer(self, name: str) -> int | None:
        """Position of the node that makes a value; None for inputs and initializers."""
        return self._producers.get(name)

    def only_user(self, name: str) -> int | None:
        """The one node that reads a value; None where there are more, or the graph returns it."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def is_operator(self, position: int | None, *kinds: str) -> bool:
        """Whether a node is a standard operator of one of these kinds."""
        if position is None:
            return False
        node = self.nodes[position]
        return node.op_type in kinds and node.domain in _STANDARD

    def constant(self, name: str) -> np.ndarray | None:
        """The array of a value that no input can change: else None.

        Looks through Constant, Identity and Transpose, which ONNX Runtime folds as well.
        """
        if name in self._initializers and name not in self._inputs:
            return numpy_helper.to_array(self._initializers[name])
        position = self.producer(name)
        if self.is_operator(position, "Constant"):
            tensor = attributes(self.nodes[position]).get("value")
            return None if tensor is None else numpy_helper.to_array(tensor)
        if self.is_operator(position, "Identity", "Transpose"):
            node = self.nodes[position]
            array = self.constant(node.input[0])
            if array is None or node.op_type == "Identity":
                return array
            return array.transpose(attributes(node).get("perm"))
        return None

    def scalar(self, name: str) -> float | None:
        """The number of a constant with one element: else None."""
        array = self.constant(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {part.name: helper.get_attribute_value(part) for part in node.attribute}


def initializer_names(graph: onnx.GraphProto) -> set[str]:
    """Names of a graph's initializers, sparse ones too."""
    names = {tensor.name for tensor in graph.initializer}
    return names | {tensor.values.name for tensor in graph.sparse_initializer}


def needed_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: initializers may be listed as inputs, too."""
    constants = initializer_names(graph)
    return [value for value in graph.input if value.name not in constants]


def values_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node reads, also those that its subgraphs read around it."""
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from values_read(inner)
        yield from (value.name for value in graph.output)
