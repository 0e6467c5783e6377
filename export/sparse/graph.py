"""What patterns ask of an ONNX model's main graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.constants import Constants

FIRST_WITH_DEFAULTS = 4
"""IR version from which an initializer that is listed as an input is a default that a caller may
replace. In older versions every initializer is listed, and is still a constant."""


class Graph:
    """A model's main graph and its constants. It never changes the model.

    Attributes:
        model: The model.
        nodes: The nodes of the main graph.
        position: The place of each node among them.

    Args:
        model: Nodes in topological order, as ONNX requires.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes = list(model.graph)
        self.position = {node: place for place, node in enumerate(self.nodes)}
        has_defaults = model.ir_version >= FIRST_WITH_DEFAULTS
        self._defaults = {v for v in model.graph.inputs if has_defaults and v.is_initializer()}
        self._constants = Constants(model, self._defaults)

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """Return the array of a constant value; None for other values.

        Nodes that ONNX Runtime folds as well are computed, see :class:`Constants`.
        """
        return None if value is None else self._constants.array(value)

    def scalar(self, value: ir.Value | None) -> float | None:
        """Return the number of a constant with one element; None for other values."""
        array = self.constant(value)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def stored(self, value: ir.Value) -> str:
        """Return the name of the largest stored tensor that a constant is computed from."""
        return self._constants.stored(value)

    def not_constant_reason(self, value: ir.Value) -> str:
        """Return why a value is not constant, as the end of a sentence such as "its weight ..."."""
        if value in self._defaults:
            return (
                "is listed as a graph input, so a caller of the model may replace it: a constant "
                "is an initializer that is not among the inputs"
            )
        return "is not constant"


def is_operator(node: ir.Node | None, *kinds: str) -> bool:
    """Whether a node is a standard operator of one of these kinds."""
    return node is not None and node.op_type in kinds and node.domain == ""


def is_elementwise(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the inputs of a node are known to have the shape of its output: none is broadcast.

    Args:
        node: A node with one output, and without omitted inputs.
        shapes: Shapes of values, by name.
    """
    found = {shapes.get(value.name) for value in (*node.inputs, *node.outputs)}
    return len(found) == 1 and None not in found


def attributes(node: ir.Node) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def argument(node: ir.Node, place: int) -> ir.Value | None:
    """Return an input of a node; None if it is omitted."""
    return node.inputs[place] if place < len(node.inputs) else None


def users(value: ir.Value) -> set[ir.Node]:
    """Return the nodes that read a value, also those in subgraphs (of If, Loop, Scan)."""
    return {use.node for use in value.uses()}


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads a value.

    None if it is read more than once or in a subgraph, or the graph returns it.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


def is_open(axis: int | ir.SymbolicDim) -> bool:
    """Whether an axis is dynamic. Some exporters write -1 for that."""
    return not isinstance(axis, int) or axis < 0


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return a graph's inputs, its initializers and what its nodes compute, by name."""
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    return values | {value.name: value for node in graph for value in node.outputs}


def needed_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller must give: initializers may be listed as inputs, too."""
    return [value for value in model.graph.inputs if not value.is_initializer()]
