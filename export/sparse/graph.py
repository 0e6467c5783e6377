"""An index of the producers and users of each value in an ONNX model's main graph."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mfac_compress.export.graphs import nested, subgraphs
from mfac_compress.export.sparse.constants import Constants

_STANDARD = ("", "ai.onnx")
FIRST_WITH_DEFAULTS = 4
"""IR version from which an initializer that is listed as an input is a default that a caller may
replace. In older versions every initializer is listed, and is still a constant."""


class Graph:
    """An index of a model's main graph, which it never changes.

    Nodes are identified by their position. A value that a subgraph (of If, Loop, Scan) reads is
    used at the position of the node that contains the subgraph.

    Args:
        model: Nodes in topological order, as ONNX requires.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        listed = {value.name for value in model.graph.input}
        has_defaults = model.ir_version >= FIRST_WITH_DEFAULTS
        self.defaults = initializer_names(model.graph) & listed if has_defaults else frozenset()
        self._producers: dict[str, int] = {}
        self._users: dict[str, list[int]] = defaultdict(list)
        for position, node in enumerate(self.nodes):
            for name in node.output:
                self._producers[name] = position
            for name in filter(None, values_read(node)):
                self._users[name].append(position)
        self._constants = Constants(model, self.defaults)

    def users(self, name: str) -> list[int]:
        """Return the positions of the nodes that read a value, once for each use."""
        return self._users.get(name, [])

    def producer(self, name: str) -> int | None:
        """Return the position of the node that makes a value; None for inputs and initializers."""
        return self._producers.get(name)

    def only_user(self, name: str) -> int | None:
        """Return the only node that reads a value; None if several do, or the graph returns it."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def is_operator(self, position: int | None, *kinds: str) -> bool:
        """Whether a node is a standard operator of one of these kinds."""
        if position is None:
            return False
        node = self.nodes[position]
        return node.op_type in kinds and node.domain in _STANDARD

    def constant(self, name: str) -> np.ndarray | None:
        """Return the array of a constant value; None for other values.

        Nodes that ONNX Runtime folds as well are computed, see :class:`Constants`.
        """
        return self._constants.array(name)

    def stored(self, name: str) -> str:
        """Return the name of the largest stored tensor that a constant is computed from."""
        return self._constants.stored(name)

    def not_constant_reason(self, name: str) -> str:
        """Return why a value is not constant, as the end of a sentence such as "its weight ..."."""
        if name in self.defaults:
            return (
                "is listed as a graph input, so a caller of the model may replace it: a constant "
                "is an initializer that is not among the inputs"
            )
        return "is not constant"

    def scalar(self, name: str) -> float | None:
        """Return the number of a constant with one element; None for other values."""
        array = self.constant(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {part.name: helper.get_attribute_value(part) for part in node.attribute}


def initializer_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of a graph's initializers, sparse ones too."""
    names = {tensor.name for tensor in graph.initializer}
    return names | {tensor.values.name for tensor in graph.sparse_initializer}


def value_names(graph: onnx.GraphProto) -> set[str]:
    """Return all names of values in a graph and its subgraphs, which a new name must avoid."""
    names = set()
    for each in nested(graph):
        names |= initializer_names(each) | {value.name for value in each.input}
        names |= {name for node in each.node for name in (*node.input, *node.output)}
    return names


def is_open(dimension: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether an axis is dynamic. Some exporters write -1 for that."""
    return not dimension.HasField("dim_value") or dimension.dim_value < 0


def needed_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must give: initializers may be listed as inputs, too."""
    constants = initializer_names(graph)
    return [value for value in graph.input if value.name not in constants]


def values_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the values that a node or its subgraphs read."""
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from values_read(inner)
        yield from (value.name for value in graph.output)
