"""Layers: what their weights make of channels."""

from math import prod

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.channels import (
    Bias,
    Channels,
    Keeps,
    Needs,
    along,
    shape_of,
    spread,
)
from mfac_compress.export.sparse.graph import argument, attributes, is_operator, only_user


def convolution(channels: Channels, node: ir.Node) -> bool:
    """Read a Conv: dense, or grouped, of which a group goes as a whole."""
    x, weight, bias = (argument(node, place) for place in range(3))
    array = _weight(weight)
    if array is None or array.ndim < 3 or not _is_weight(bias, optional=True):
        return False
    given, groups = attributes(node), attributes(node).get("group", 1)
    padded = any(given.get("pads", ())) or given.get("auto_pad", "NOTSET") not in _NO_PADS
    inputs = _inputs(channels, node, x, 1, array.shape[1] * groups)
    outputs = channels.weight(node, weight, 0)
    known = _known(channels, x, 1, array.shape[1] * groups)
    if padded:
        known = np.where(known == 0, known, np.nan)  # the border reads zeros
    matrix = array.reshape(len(array), array.shape[1], -1).astype(np.float64)
    sums, used = matrix.sum(axis=2), (matrix != 0).any(axis=2)
    place = (node, 2)
    if groups == 1:
        channels.classes.couple(channels.weight(node, weight, 1), inputs)
        _finish(channels, node, place, inputs, outputs, sums, used, known, bias)
    else:
        _groups(channels, node, groups, inputs, outputs, sums, used, known, bias)
    channels.of_value[node.outputs[0]] = spread(outputs, 1, array.ndim)
    return True


_NO_PADS = ("NOTSET", "VALID")


def transposed_convolution(channels: Channels, node: ir.Node) -> bool:
    """Read a ConvTranspose without groups; its border takes fewer inputs than its middle."""
    x, weight, bias = (argument(node, place) for place in range(3))
    array = _weight(weight)
    grouped = attributes(node).get("group", 1) != 1
    if array is None or grouped or not _is_weight(bias, optional=True):
        return False
    inputs = _inputs(channels, node, x, 1, len(array))
    outputs = channels.weight(node, weight, 1)
    channels.classes.couple(channels.weight(node, weight, 0), inputs)
    known = _known(channels, x, 1, len(array))
    known = np.where(known == 0, known, np.nan)
    matrix = array.reshape(*array.shape[:2], -1).swapaxes(0, 1).astype(np.float64)
    sums, used = matrix.sum(axis=2), (matrix != 0).any(axis=2)
    _finish(channels, node, (node, 2), inputs, outputs, sums, used, known, bias)
    channels.of_value[node.outputs[0]] = spread(outputs, 1, array.ndim)
    return True


def gemm(channels: Channels, node: ir.Node) -> bool:
    """Read a Gemm with a constant weight."""
    x, weight, bias = (argument(node, place) for place in range(3))
    given, array = attributes(node), _weight(weight)
    plain = given.get("transA", 0) == 0 and given.get("alpha", 1) == given.get("beta", 1) == 1
    if array is None or not plain or not _is_weight(bias, optional=True):
        return False
    rows = 0 if given.get("transB", 0) else 1
    if bias is not None and tuple(bias.shape) != (array.shape[rows],):
        return False
    _product(channels, node, x, weight, rows, (node, 2), bias)
    return True


def product(channels: Channels, node: ir.Node) -> bool:
    """Read a MatMul with a constant weight on the right, ``[inputs, outputs]``."""
    x, weight = node.inputs
    array, shape = _weight(weight), shape_of(x)
    if array is None or array.ndim != 2 or not shape:
        return False
    place, bias = None, None
    after = only_user(node.outputs[0])
    if is_operator(after, "Add"):
        at = 1 if after.inputs[0] is node.outputs[0] else 0
        added = after.inputs[at]
        if _is_weight(added) and tuple(added.shape) == (array.shape[1],):
            place = (after, at)
    _product(channels, node, x, weight, 1, place, bias)
    return True


def batch_norm(channels: Channels, node: ir.Node) -> bool:
    """Read a BatchNormalization with constant statistics."""
    x, *constants = node.inputs[:5]
    arrays = [_weight(value) for value in constants]
    shape = shape_of(x)
    if shape is None or any(array is None for array in arrays) or _is_training(node):
        return False
    scale, shift, mean, variance = (array.astype(np.float64) for array in arrays)
    own = _inputs(channels, node, x, 1, len(scale))
    for value in constants:
        channels.classes.couple(channels.weight(node, value, 0), own)
    epsilon = attributes(node).get("epsilon", 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    known = _known(channels, x, 1, len(scale))
    known = np.where(scale == 0, shift, (known - mean) * factor + shift)
    channels.of_value[node.outputs[0]] = spread(own, 1, len(shape))
    channels.constants[node.outputs[0]] = spread(known, 1, len(shape))
    return True


def _is_training(node: ir.Node) -> bool:
    return attributes(node).get("training_mode", 0) == 1 or len(node.outputs) > 1


def _product(
    channels: Channels,
    node: ir.Node,
    x: ir.Value,
    weight: ir.Value,
    rows: int,
    place: tuple[ir.Node, int] | None,
    bias: ir.Value | None,
) -> None:
    rank = len(shape_of(x) or (0, 0))
    array = weight.const_value.numpy()
    matrix = (array if rows == 0 else array.T).astype(np.float64)
    inputs = _inputs(channels, node, x, rank - 1, matrix.shape[1])
    outputs = channels.weight(node, weight, rows)
    channels.classes.couple(channels.weight(node, weight, 1 - rows), inputs)
    known = _known(channels, x, rank - 1, matrix.shape[1])
    if place is None:
        known = np.where(known == 0, known, np.nan)  # no bias that could take it over
    _finish(channels, node, place, inputs, outputs, matrix, matrix != 0, known, bias)
    channels.of_value[node.outputs[0]] = spread(outputs, rank - 1, rank)


def _finish(
    channels: Channels,
    node: ir.Node,
    place: tuple[ir.Node, int] | None,
    inputs: np.ndarray,
    outputs: np.ndarray,
    sums: np.ndarray,
    used: np.ndarray,
    known: np.ndarray,
    bias: ir.Value | None,
) -> None:
    """Note which inputs a layer needs, what the others add, and which outputs are constant.

    Args:
        sums: What a one in each input adds to each output, away from the border. ``[O, I]``.
        used: Whether an output reads an input. ``[O, I]``.
        known: What each input is; NaN where the bias cannot take it over. ``[I]``.
        bias: The layer's own.
    """
    unknown = np.isnan(known)
    channels.needs.append(Needs(inputs[unknown], outputs, used[:, unknown]))
    effects = sums * np.where(unknown, 0.0, known)
    if place is not None and effects.any():
        some = effects.any(axis=0)
        channels.biases.append(Bias(node, inputs[some], outputs, effects[:, some], place))
    own = 0.0 if bias is None else _couple_bias(channels, node, bias, outputs)
    constant = np.where((used & unknown).any(axis=1), np.nan, effects.sum(axis=1) + own)
    _set_outputs(channels, node, outputs, constant)


def _groups(
    channels: Channels,
    node: ir.Node,
    groups: int,
    inputs: np.ndarray,
    outputs: np.ndarray,
    sums: np.ndarray,
    used: np.ndarray,
    known: np.ndarray,
    bias: ir.Value | None,
) -> None:
    """Couple the inputs and outputs of each group."""
    channels.classes.couple(inputs.reshape(groups, -1), inputs.reshape(groups, -1)[:, :1])
    channels.classes.couple(outputs.reshape(groups, -1), inputs.reshape(groups, -1)[:, :1])
    of_group = np.arange(len(outputs)) // (len(outputs) // groups)
    known = known.reshape(groups, -1)[of_group]  # [O, inputs of a group]
    own = 0.0 if bias is None else _couple_bias(channels, node, bias, outputs)
    constant = np.where(used, sums * known, 0.0).sum(axis=1) + own
    _set_outputs(channels, node, outputs, constant)
    first = inputs.reshape(groups, -1)[:, 0]

    def edit(kept: Keeps) -> None:
        node.attributes["group"] = ir.AttrInt64("group", int(kept(first).sum()))

    channels.edits.append(edit)


def _couple_bias(
    channels: Channels, node: ir.Node, bias: ir.Value, outputs: np.ndarray
) -> np.ndarray:
    channels.classes.couple(channels.weight(node, bias, 0), outputs)
    return bias.const_value.numpy().astype(np.float64)


def _set_outputs(
    channels: Channels, node: ir.Node, outputs: np.ndarray, constant: np.ndarray
) -> None:
    channels.producers.append(outputs)
    rank = len(shape_of(node.outputs[0]) or shape_of(node.inputs[0]) or (0, 0))
    axis = rank - 1 if node.op_type in ("Gemm", "MatMul") else 1
    channels.constants[node.outputs[0]] = spread(constant, axis, rank)
    if len(outputs) == 1:
        channels.classes.stay(outputs)


def _inputs(channels: Channels, node: ir.Node, x: ir.Value, axis: int, size: int) -> np.ndarray:
    """Return the channels of an input along an axis; where it has others as well, all stay."""
    found = channels.read(node, x)
    own = along(found, axis)
    if own is None or len(own) != size:
        channels.stay(x)
        own = np.zeros(size, dtype=np.int64)
    return own


def _known(channels: Channels, x: ir.Value, axis: int, size: int) -> np.ndarray:
    """Return what is known of an input along an axis. Shape ``[size]``, NaN for nothing."""
    known = channels.constants.get(x)
    if known is None or known.size != size or known.shape[axis] != size:
        return np.full(size, np.nan)
    return known.ravel()


def _weight(value: ir.Value | None) -> np.ndarray | None:
    """Return an initializer's array, if it is of finite floating-point numbers."""
    if not _is_weight(value):
        return None
    array = value.const_value.numpy()
    return array if prod(array.shape) and np.isfinite(array.astype(np.float64)).all() else None


def _is_weight(value: ir.Value | None, *, optional: bool = False) -> bool:
    if value is None:
        return optional
    stored = value.is_initializer() and value.const_value is not None
    return stored and value.dtype is not None and value.dtype.is_floating_point()
