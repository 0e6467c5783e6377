"""Operators over positions, channel by channel: pooling, means, softmax and norms."""

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.channels import Channels, shape_of
from mfac_compress.export.sparse.graph import argument, attributes


def pooling(channels: Channels, node: ir.Node) -> bool:
    """Read a pooling operator over all axes but the first two."""
    x, y = node.inputs[0], node.outputs[0]
    if shape_of(x) is None or len(node.outputs) != 1:
        return False
    found, known = channels.read(node, x), channels.constants.get(x)
    if found is not None and max(found.shape[2:], default=1) > 1:
        return False
    if found is not None:
        channels.of_value[y] = found
    if known is not None and max(known.shape[2:], default=1) == 1:
        channels.constants[y] = known if _keeps_constants(node) else _zeros_only(known)
    return True


def _keeps_constants(node: ir.Node) -> bool:
    """Whether each output is a mean or maximum of inputs, and of no zeros at the border."""
    given = attributes(node)
    bordered = any(given.get("pads", ())) or given.get("auto_pad", "NOTSET") != "NOTSET"
    return not bordered and not given.get("ceil_mode", 0)


def reduction(channels: Channels, node: ir.Node) -> bool:
    """Read ReduceMean, ReduceMax, ReduceMin or ReduceSum over axes without channels."""
    x, y = node.inputs[0], node.outputs[0]
    given, shape = attributes(node), shape_of(x)
    axes = given.get("axes")
    if argument(node, 1) is not None:
        axes = channels.graph.constant(node.inputs[1])
    if shape is None or axes is None or not len(axes):
        return False
    over = {int(axis) % len(shape) for axis in axes}
    found, known = channels.read(node, x), channels.constants.get(x)

    def reduced(array: np.ndarray) -> np.ndarray:
        if given.get("keepdims", 1):
            return array
        return array.reshape([d for axis, d in enumerate(array.shape) if axis not in over])

    if found is not None and any(found.shape[axis] > 1 for axis in over):
        return False
    if found is not None:
        channels.of_value[y] = reduced(found)
    if known is not None and all(known.shape[axis] == 1 for axis in over):
        known = _zeros_only(known) if node.op_type == "ReduceSum" else known
        channels.constants[y] = reduced(known)
    return True


def along_axis(channels: Channels, node: ir.Node) -> bool:
    """Read Softmax, LogSoftmax or LayerNormalization along axes without channels."""
    found = channels.read(node, node.inputs[0])
    if found is None:
        return True
    axis = attributes(node).get("axis", -1) % found.ndim
    axes = range(axis, found.ndim) if node.op_type == "LayerNormalization" else [axis]
    if len(node.outputs) != 1 or any(found.shape[each] > 1 for each in axes):
        return False
    channels.of_value[node.outputs[0]] = found
    return True


def _zeros_only(known: np.ndarray) -> np.ndarray:
    return np.where(known == 0, known, np.nan)
