"""Operators that treat each element by itself: activations, additions, scalings."""

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.channels import Channels, shape_of

UNARY = {
    "Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
BINARY = {"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"}


def elementwise(channels: Channels, node: ir.Node) -> bool:
    """Read an element-wise operator: channels of all its operands go together."""
    shapes = [shape_of(value) for value in node.inputs if value is not None]
    if None in shapes or len(node.outputs) != 1:
        return False
    rank = max(map(len, shapes))
    found = [_aligned(channels.read(node, value), rank) for value in node.inputs]
    form = next((each.shape for each in found if each is not None and each.size > 1), None)
    if form is not None:
        for value, own in zip(node.inputs, found, strict=True):
            if value is not None and not _follows(channels, node, value, own, form):
                channels.stay(*node.inputs)
        whole = next(each for each in found if each is not None and each.shape == form)
        channels.of_value[node.outputs[0]] = whole
    constant = _constant(channels, node, rank)
    if constant is not None:
        channels.constants[node.outputs[0]] = constant
    return True


def _follows(
    channels: Channels,
    node: ir.Node,
    value: ir.Value,
    own: np.ndarray | None,
    form: tuple[int, ...],
) -> bool:
    """Couple an operand's channels with those of the result; False where they cannot be."""
    shape = (1,) * (len(form) - len(value.shape)) + shape_of(value)
    axes = [axis for axis, size in enumerate(form) if size > 1 and shape[axis] != 1]
    if not axes:
        channels.stay(value)  # of one element along them, which each channel reads
        return True
    whole = _whole(channels, node, form)
    if own is not None and own.size > 1:
        if own.shape == form:
            channels.classes.couple(own, whole)
        return own.shape == form
    if not value.is_initializer() or [size for size in form if size > 1] != [shape[axes[0]]]:
        return False
    axis = axes[0] - len(form)
    channels.classes.couple(channels.weight(node, value, axis), whole.ravel())
    return True


def _whole(channels: Channels, node: ir.Node, form: tuple[int, ...]) -> np.ndarray:
    of_inputs = (_aligned(channels.of_value.get(value), len(form)) for value in node.inputs)
    return next(each for each in of_inputs if each is not None and each.shape == form)


def _constant(channels: Channels, node: ir.Node, rank: int) -> np.ndarray | None:
    """Compute what is known of the result. Of the result's rank."""
    known = {value: channels.constant(value) for value in node.inputs if value is not None}
    if all(value not in channels.constants for value in known):
        return None
    if node.op_type == "Mul" and len(known) == 2:
        zero = [each for each in known.values() if each is not None and (each == 0).any()]
        known = {v: np.array(np.nan) if a is None else a for v, a in known.items()}
    else:
        zero = []
    if any(array is None for array in known.values()):
        return None
    result = channels.evaluate(node, known)
    if result is None:
        return None
    result = _aligned(result, rank)
    for each in zero:
        zeros = np.broadcast_to(
            _aligned(each, rank) == 0, np.broadcast_shapes(result.shape, _aligned(each, rank).shape)
        )
        result = np.where(zeros, 0.0, result)
    return _per_channel(result)


def _per_channel(array: np.ndarray) -> np.ndarray | None:
    """Reduce an array to the one axis on which it differs; None if it differs on several."""
    for axis in range(array.ndim):
        first = np.take(array, [0], axis=axis)
        if np.array_equal(np.broadcast_to(first, array.shape), array, equal_nan=True):
            array = first
    return array if max(array.shape, default=1) == array.size else None


def _aligned(array: np.ndarray | None, rank: int) -> np.ndarray | None:
    return None if array is None else array.reshape((1,) * (rank - array.ndim) + array.shape)
