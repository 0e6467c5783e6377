"""What is known of the channels of a graph's values, while its nodes are read in order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.classes import Classes
from mfac_compress.export.sparse.fold import fold
from mfac_compress.export.sparse.graph import Graph

Keeps = Callable[[np.ndarray], np.ndarray]
"""Says which of some channels are kept: numbers of any shape -> booleans."""


@dataclass(frozen=True)
class Bias:
    """What dead inputs add to a layer's outputs.

    Args:
        layer: The node that reads the inputs.
        inputs: Their channels. Shape ``[I]``.
        outputs: The outputs' channels. Shape ``[O]``.
        effects: What each input adds to each output, while it is constant. Float64, ``[O, I]``.
        place: The node with the bias, and which of its inputs that is.
    """

    layer: ir.Node
    inputs: np.ndarray
    outputs: np.ndarray
    effects: np.ndarray
    place: tuple[ir.Node, int]


@dataclass(frozen=True)
class Needs:
    """Which inputs a layer needs for which outputs.

    Args:
        inputs: Channels that are not constant. Shape ``[I]``.
        outputs: Shape ``[O]``.
        used: Whether an output's weights for an input are not all zero. Shape ``[O, I]``.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    used: np.ndarray


@dataclass
class Channels:
    """Numbers of channels by value, and what else a removal has to know.

    Arrays of a value have its rank, and one element along each axis on which nothing differs.

    Args:
        graph: The graph.
    """

    graph: Graph
    classes: Classes = field(default_factory=Classes)
    of_value: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    """Channels of what nodes compute. A value that is not here keeps its shape."""
    constants: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    """What a channel is at every position, for every input. Float64, NaN where it is not known."""
    of_weight: dict[tuple[ir.Value, int], np.ndarray] = field(default_factory=dict)
    """Channels of an axis of an initializer."""
    fixed: set[tuple[ir.Value, int]] = field(default_factory=set)
    """Axes of values that must not shrink."""
    producers: list[np.ndarray] = field(default_factory=list)
    """Output channels of each layer."""
    needs: list[Needs] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    edits: list[Callable[[Keeps], None]] = field(default_factory=list)
    """Changes to nodes, made before weights are cut, given what is kept."""
    done: set[ir.Node] = field(default_factory=set)
    """Nodes that were read together with one before them."""
    _readers: dict[ir.Value, set[ir.Node]] = field(default_factory=dict)

    def read(self, node: ir.Node, value: ir.Value | None) -> np.ndarray | None:
        """Return the channels of a node's input; None where it keeps its shape."""
        if value is None or value not in self.of_value:
            return None
        self._readers.setdefault(value, set()).add(node)
        return self.of_value[value]

    def weight(self, node: ir.Node, value: ir.Value, axis: int) -> np.ndarray:
        """Return the channels of an axis of an initializer that a node reads. Shape ``[size]``."""
        key = (value, axis % len(value.shape))
        if key not in self.of_weight:
            self.of_weight[key] = self.classes.new(value.shape[axis])
        self._readers.setdefault(value, set()).add(node)
        return self.of_weight[key]

    def stay(self, *values: ir.Value | None) -> None:
        """Keep all channels of values."""
        for value in values:
            if value in self.of_value:
                self.classes.stay(self.of_value[value])

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """Return what is known of a value: of an initializer all; None for nothing."""
        if value in self.constants:
            return self.constants[value]
        array = self.graph.constant(value)
        return array if array is not None and array.dtype.kind in "fiu" else None

    def evaluate(self, node: ir.Node, inputs: Mapping[ir.Value, np.ndarray]) -> np.ndarray | None:
        """Compute an element-wise node on what is known of its inputs, in ONNX Runtime.

        Returns:
            Float64, NaN where an input is or where the result is not finite; None if it cannot be.
        """
        tensors = {
            value: ir.tensor(np.nan_to_num(array, nan=0.0).astype(_dtype(value, array)))
            for value, array in inputs.items()
        }
        for value, tensor in tensors.items():
            tensor.name = value.name
        result = fold(node, tensors, self.graph.model)
        if result is None:
            return None
        array = result[node.outputs[0]].numpy().astype(np.float64)
        unknown = sum(np.isnan(each) for each in inputs.values() if each.dtype.kind == "f")
        return np.where(np.broadcast_to(unknown, array.shape) | ~np.isfinite(array), np.nan, array)

    def give_up(self, node: ir.Node) -> None:
        """Keep the channels of whatever a node reads and computes."""
        self.stay(*node.inputs, *node.outputs)
        for readers in self._readers.values():
            readers.discard(node)
        for value in node.outputs:
            self.of_value.pop(value, None)
            self.constants.pop(value, None)

    def close(self) -> None:
        """Keep the channels of what the graph returns, and of what other nodes read as well."""
        for value, channels in self.of_value.items():
            if value.is_graph_output() or not self._all_known(value):
                self.classes.stay(channels)
        for (value, _), channels in self.of_weight.items():
            if value.is_graph_output() or value.is_graph_input() or not self._all_known(value):
                self.classes.stay(channels)

    def _all_known(self, value: ir.Value) -> bool:
        return {use.node for use in value.uses()} <= self._readers.get(value, set())


def shape_of(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """Return a value's recorded shape, open axes by their names; None if it is not recorded."""
    if value is None or value.shape is None:
        return None
    dims = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return None if None in dims else dims


def along(channels: np.ndarray | None, axis: int) -> np.ndarray | None:
    """Return the channels along the only axis that has any; None for others.

    Example:
        >>> along(np.arange(3).reshape(1, 3, 1), 1).tolist(), along(np.arange(3).reshape(3, 1), 1)
        ([0, 1, 2], None)
    """
    if channels is None or channels.shape[axis] != channels.size or channels.size == 1:
        return None
    return channels.ravel()


def spread(channels: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Put channels along one axis. Shape ``[n]`` -> ``[1, ..., n, ..., 1]``."""
    shape = [1] * rank
    shape[axis] = len(channels)
    return channels.reshape(shape)


def replace_constant(node: ir.Node, place: int, array: np.ndarray) -> ir.Value:
    """Give a node a constant of its own as an input, and return it."""
    graph, name = node.graph, f"{node.name}.{place}"
    taken = {*graph.initializers, *(v.name for each in graph for v in each.outputs)}
    while name in taken:
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
    graph.initializers.add(value)
    if place >= len(node.inputs):
        node.resize_inputs(place + 1)
    node.replace_input_with(place, value)
    return value


def _dtype(value: ir.Value, array: np.ndarray) -> np.dtype:
    return array.dtype if value.dtype is None else value.dtype.numpy()
