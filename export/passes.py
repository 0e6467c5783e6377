"""Passes over an exported graph that do not change what it computes."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from torch import Tensor

TRANSPOSED = ".T"
"""Suffix of an initializer that holds the transpose of the parameter named before it."""

GATES = {"LSTM": ".iofc", "GRU": ".zrh"}
"""Suffix of an initializer that holds a recurrent layer's weights in ONNX's order of gates.

The names before it, joined by ``+``, are those of the parameters of each direction.
"""

# Positions of ONNX's gates among PyTorch's, which are input, forget, cell, output for an LSTM, and
# reset, update, new for a GRU.
_GATE_PLACES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def clear_traces(model: ir.Model) -> None:
    """Drop the exporter's metadata: it contains source lines and paths of the machine it ran on.

    Args:
        model: Changed in place.
    """
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()


def make_zeros_positive(model: ir.Model) -> None:
    """Write each zero of a floating-point initializer as +0: mixed signs compress badly.

    Args:
        model: Changed in place. Arrays that its tensors share with others are not changed.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy()
        if np.any(np.signbit(array) & (array == 0)):
            value.const_value = ir.tensor(array + array.dtype.type(0), name=value.name)


def name_transposed(model: ir.Model, parameters: Mapping[str, Tensor]) -> None:
    """Give folded transposes the name of their parameter, followed by ``.T``.

    A linear layer on inputs of three or more axes becomes a MatMul with the transposed weight,
    which the exporter precomputes and gives a new name. Of a layer that is called several times it
    makes several, of which one is left.

    Args:
        model: Changed in place.
        parameters: The model's parameters by name.
    """
    initializers = model.graph.initializers
    named: list[tuple[ir.Value, Tensor]] = []
    nameless = [value for name, value in initializers.items() if name not in parameters]
    for name, parameter in parameters.items():
        if parameter.ndim != 2 or name in initializers:
            continue
        value = next((each for each in nameless if _holds(each, parameter)), None)
        if value is not None:
            nameless.remove(value)
            value.name = name + TRANSPOSED
            named.append((value, parameter))
    for copy in nameless:
        value = next((each for each, parameter in named if _holds(copy, parameter)), None)
        if value is not None:
            copy.replace_all_uses_with(value)
            del initializers[copy.name]


def name_recurrent(model: ir.Model, parameters: Mapping[str, Tensor]) -> None:
    """Name the weights of LSTM and GRU operators after their parameters.

    The exporter stacks the directions of a layer in one initializer ``[directions, gates * hidden,
    inputs]``, with the gates in ONNX's order, under a name of its own.

    Args:
        model: Changed in place.
        parameters: The model's parameters by name.
    """
    left = dict(parameters)
    for node in model.graph:
        if node.op_type not in GATES:
            continue
        for value in node.inputs[1:3]:
            if value is None or value.name not in model.graph.initializers:
                continue
            directions = torch_gates(value.const_value.numpy(), node.op_type)
            names = [_holder(direction, left) for direction in directions]
            if None not in names:
                value.name = "+".join(names) + GATES[node.op_type]


def torch_gates(stacked: np.ndarray, operator: str) -> list[np.ndarray]:
    """Convert ONNX's weights of a recurrent layer to PyTorch's.

    Args:
        stacked: Shape ``[directions, gates * hidden, inputs]``.
        operator: ``LSTM`` or ``GRU``.
    Returns:
        The weight of each direction, its gates in PyTorch's order. Shape ``[gates * hidden,
        inputs]``.
    """
    places = _GATE_PLACES[operator]
    order = np.argsort(places)
    return [
        np.concatenate([np.split(direction, len(places))[place] for place in order])
        for direction in stacked
    ]


def _holder(weight: np.ndarray, parameters: dict[str, Tensor]) -> str | None:
    """Remove the parameter that has these values and return its name; None if there is none."""
    for name, parameter in parameters.items():
        if tuple(parameter.shape) == weight.shape and _equal(weight.T, parameter):
            del parameters[name]
            return name
    return None


def _holds(value: ir.Value, parameter: Tensor) -> bool:
    """Whether an initializer is the transpose of a parameter."""
    same_shape = tuple(value.shape) == tuple(parameter.shape[::-1])
    return same_shape and _equal(value.const_value.numpy(), parameter)


def _equal(array: np.ndarray, parameter: Tensor) -> bool:
    """Whether an array is bit-identical to the transpose of a parameter."""
    ours = parameter.detach().cpu().double().numpy()  # represents every float exactly
    return np.array_equal(array.astype(ours.dtype), ours.T)
