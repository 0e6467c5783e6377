"""Changes to an exported graph that leave what it computes as it is."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from torch import Tensor

TRANSPOSED = ".T"
"""Ends the name of an initializer that holds the transpose of the parameter named before it."""


def clear_traces(model: ir.Model) -> None:
    """Drop the exporter's notes: they carry source lines and paths of the machine it ran on.

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
    """Write each zero of a floating initializer as +0: mixed signs compress badly.

    Args:
        model: Changed in place. The arrays that its tensors share with others are not.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy()
        if np.any(np.signbit(array) & (array == 0)):
            value.const_value = ir.tensor(array + array.dtype.type(0), name=value.name)


def name_transposed(model: ir.Model, parameters: Mapping[str, Tensor]) -> None:
    """Give folded transposes the name of their parameter, with ``.T`` behind it.

    A linear layer on inputs of three or more axes becomes a MatMul with the transposed weight,
    which the exporter computes ahead and names anew.

    Args:
        model: Changed in place.
        parameters: The model's parameters by name.
    """
    initializers = model.graph.initializers
    nameless = [value for name, value in initializers.items() if name not in parameters]
    for name, parameter in parameters.items():
        if parameter.ndim != 2 or name in initializers:
            continue
        transposed = tuple(parameter.shape[::-1])
        for value in nameless:
            if tuple(value.shape) == transposed and _equal(value.const_value, parameter):
                nameless.remove(value)
                value.name = name + TRANSPOSED
                break


def _equal(tensor: ir.TensorProtocol, parameter: Tensor) -> bool:
    """Whether an ONNX tensor holds the transpose of a parameter, to the last bit."""
    ours = parameter.detach().cpu().double().numpy()  # holds every float exactly
    return np.array_equal(tensor.numpy().astype(ours.dtype), ours.T)
