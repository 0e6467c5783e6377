"""ONNX nodes of the sparse operators, as specified in docs/sparse-operators.md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mfac_compress.export.sparse.format import PackedWeight
from mfac_compress.export.sparse.quads import Packed1x4

DOMAIN = "mfac_compress"
VERSION = 1
_ACTIVATIONS = ("none", "relu", "clip", "gelu", "gelu_tanh")
_LAYOUTS = ("nchw", "planes")
_READ_BEYOND = 32
_ALIGNED = (8, 16, 32)
_BETWEEN_ROWS = 8


@dataclass(frozen=True)
class SparseNode:
    """A node and its initializers."""

    node: onnx.NodeProto
    initializers: tuple[onnx.TensorProto, ...]


def sparse_linear(
    name: str,
    x: str,
    y: str,
    weight: PackedWeight,
    *,
    bias: np.ndarray | None = None,
    residual: str | None = None,
    activation: str = "none",
    clip: tuple[float, float] | None = None,
) -> SparseNode:
    """Build ``y = activation(x Wᵀ + bias + residual)``.

    Args:
        name: Name of the node; the initializers' names begin with it.
        x: Name of the input, shape ``[..., inputs]``.
        y: Name of the output, shape ``[..., outputs]``.
        weight: Packed from ``[outputs, inputs]``.
        bias: float32, shape ``[outputs]``.
        residual: Name of a tensor of the output's shape that is added before the activation.
        activation: none, relu, clip, gelu (with erf) or gelu_tanh.
        clip: Bounds, for the activation clip.
    Raises:
        ValueError: If weight, bias or activation do not fit.
    """
    attributes = linear_attributes(weight)
    return _node("SparseLinear", name, x, y, weight, bias, residual, activation, clip, attributes)


def sparse_conv(
    name: str,
    x: str,
    y: str,
    weight: PackedWeight,
    *,
    bias: np.ndarray | None = None,
    residual: str | None = None,
    activation: str = "none",
    clip: tuple[float, float] | None = None,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    input_layout: str = "nchw",
    output_layout: str = "nchw",
    residual_layout: str | None = None,
) -> SparseNode:
    """Build ``y = activation(conv(x, W) + bias + residual)`` for images, or along one axis.

    Arguments with one number per axis have two for images, vertical and horizontal, and one for a
    convolution along one axis. The defaults are those of images.

    Args:
        name: Name of the node; the initializers' names begin with it.
        x: Name of the input, shape ``[N, C, H, W]``, ``[N, C, W]`` or that of ``planes_shape``.
        y: Name of the output.
        weight: Packed from ``[outputs, C / group, h, w]`` or ``[outputs, C / group, w]``.
        bias: float32, shape ``[outputs]``.
        residual: Name of a tensor like the output that is added before the activation.
        activation: none, relu, clip, gelu (with erf) or gelu_tanh.
        clip: Bounds, for the activation clip.
        strides: One per axis.
        pads: Padding at the beginning of each axis, then at the end of each.
        dilations: One per axis.
        input_layout: nchw, or planes if the input is the output of a sparse convolution in planes.
        output_layout: Layout of the output.
        residual_layout: Layout of the residual; by default that of the output.
    Raises:
        ValueError: If weight, bias, activation or layout do not fit.
    """
    attributes = conv_attributes(weight, strides, pads, dilations)
    residual_layout = residual_layout or output_layout
    for layout in (input_layout, output_layout, residual_layout):
        if layout not in _LAYOUTS:
            raise ValueError(f"layouts must be one of {_LAYOUTS}. Got {layout!r}.")
    attributes |= {
        "input_layout": input_layout,
        "output_layout": output_layout,
        "residual_layout": residual_layout,
    }
    return _node("SparseConv", name, x, y, weight, bias, residual, activation, clip, attributes)


def planes_shape(batch: int, channels: int, height: int, width: int) -> tuple[int, ...]:
    """Return the shape of ``[batch, channels, height, width]`` in the layout ``planes``.

    For a convolution along one axis the height is 1.

    >>> planes_shape(1, 16, 28, 28)
    (17, 30, 29)
    >>> planes_shape(1, 16, 32, 32)
    (17, 34, 5, 8)
    """
    row = (width // _BETWEEN_ROWS + 1, _BETWEEN_ROWS) if width in _ALIGNED else (width + 1,)
    plane = (height + 2) * math.prod(row)
    return batch * channels + -(-_READ_BEYOND // plane), height + 2, *row


def linear_attributes(weight: PackedWeight | Packed1x4) -> dict[str, Any]:
    """Return the sizes of a matrix product, as attributes.

    Raises:
        ValueError: If the weight was not packed from a matrix.
    """
    if len(weight.shape) != 2:
        raise ValueError(f"weight must be packed from [outputs, inputs]. Got {weight.shape}.")
    return {"out_features": weight.shape[0], "in_features": weight.shape[1]}


def conv_attributes(
    weight: PackedWeight | Packed1x4,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> dict[str, Any]:
    """Return the sizes, strides, pads and dilations of a convolution, as attributes.

    Raises:
        ValueError: If the weight's window does not have one or two axes, or strides, pads and
            dilations are not given for as many.
    """
    axes = len(weight.shape) - 2
    if axes not in (1, 2):
        raise ValueError(
            f"weight must be packed from [outputs, C, h, w] or [outputs, C, w]. Got {weight.shape}."
        )
    if not len(strides) == len(dilations) == len(pads) / 2 == axes:
        raise ValueError(
            f"strides, dilations and pads must be for {axes} axes. Got {list(strides)}, "
            f"{list(dilations)} and {list(pads)}."
        )
    return {
        "out_channels": weight.shape[0],
        "in_channels": weight.shape[1] * weight.group,
        "group": weight.group,
        "kernel_shape": list(weight.shape[2:]),
        "strides": list(strides),
        "pads": list(pads),
        "dilations": list(dilations),
    }


def node_with(
    kind: str,
    name: str,
    x: str,
    y: str,
    arrays: Mapping[str, np.ndarray | None],
    attributes: Mapping[str, Any],
    more: Sequence[str] = (),
) -> SparseNode:
    """Build a node of our domain with its constants.

    Args:
        kind: Type of the operator.
        name: Name of the node; the initializers' names begin with it.
        x: Name of the first input.
        y: Name of the output.
        arrays: Constants, in the order of the following inputs; None for an omitted one.
        attributes: Attributes of the node.
        more: Names of the inputs after these.
    """
    there = {key: array for key, array in arrays.items() if array is not None}
    inputs = [x, *(f"{name}.{key}" if key in there else "" for key in arrays), *more]
    node = helper.make_node(kind, inputs, [y], name=name, domain=DOMAIN, **attributes)
    tensors = (numpy_helper.from_array(array, f"{name}.{key}") for key, array in there.items())
    return SparseNode(node, tuple(tensors))


def _node(
    kind: str,
    name: str,
    x: str,
    y: str,
    weight: PackedWeight,
    bias: np.ndarray | None,
    residual: str | None,
    activation: str,
    clip: tuple[float, float] | None,
    attributes: dict[str, Any],
) -> SparseNode:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {_ACTIVATIONS}. Got {activation!r}.")
    if (clip is None) == (activation == "clip"):
        raise ValueError(f"clip must be given for the activation clip only. Got {clip}.")
    if bias is not None and (bias.dtype != np.float32 or bias.shape != weight.shape[:1]):
        raise ValueError(
            f"bias must be float32 [{weight.shape[0]}]. Got {bias.dtype} {bias.shape}."
        )
    arrays = {
        "values": weight.values,
        "indices": weight.indices,
        "starts": weight.starts,
        "bias": bias,
    }
    attributes = {"block": weight.block, "activation": activation, **attributes}
    if clip is not None:
        attributes |= {"min": float(clip[0]), "max": float(clip[1])}
    return node_with(kind, name, x, y, arrays, attributes, more=[residual or ""])
