"""ONNX nodes of the sparse operators, as specified in docs/sparse-operators.md."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.format import Packed

DOMAIN = "mfac_compress"
VERSION = 1
_ACTIVATIONS = ("none", "relu", "clip", "gelu", "gelu_tanh")
_WITH_RESIDUAL = ("SparseLinear", "SparseConv", "SparseQLinearToFloat", "SparseQConvAdd")
_READ_BEYOND = 32
_ALIGNED = (8, 16, 32)
_BETWEEN_ROWS = 8


@dataclass(frozen=True)
class Window:
    """Strides, pads, dilations and groups of a convolution, along two axes or one.

    Pads are top, left, bottom, right, or left and right.
    """

    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    group: int = 1


@dataclass(frozen=True)
class Activation:
    """Epilogue of a float operator: y = activation(sum + bias + residual).

    Attributes:
        kind: none, relu, clip, gelu (with erf) or gelu_tanh.
        clip: Bounds of clip; None for the others.
    """

    kind: str = "none"
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {_ACTIVATIONS}. Got {self.kind!r}.")
        if (self.clip is None) == (self.kind == "clip"):
            raise ValueError(f"clip must be given for the activation clip only. Got {self.clip}.")


NO_ACTIVATION = Activation()


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution of what a convolution makes, computed in the same node.

    Attributes:
        name: Name of its layer.
        weight: float32, ``[outputs, 1, k, k]``, k = 3 or 5; not packed.
        window: Strides of 1 or 2, pads smaller than k, no dilations.
        bias: ``[outputs]``, float32.
        activation: What follows it.
    """

    name: str
    weight: np.ndarray
    window: Window
    bias: np.ndarray | None = None
    activation: Activation = NO_ACTIVATION


@dataclass(frozen=True)
class Addition:
    """What adds a residual to the bytes t of a quantised convolution, in integers:

    y = clip((t · factor + residual · residual_factor + offset) >> shift), uint8.

    Attributes:
        factor: In 0 to 2^15 - 1: the scale of t, divided by that of y, times 2^shift.
        residual_factor: The same of the residual.
        offset: Of size at most 2^31 - 2^25: zero points and a half for rounding, times 2^shift.
        shift: In 0 to 31.
        low: Smallest y, at least 0: the activation's lower bound.
        high: Largest y, at most 255: the activation's upper bound.
    """

    factor: int
    residual_factor: int
    offset: int
    shift: int
    low: int = 0
    high: int = 255


@dataclass(frozen=True)
class MaxPool:
    """What takes the largest byte of each window of a quantised convolution's result.

    Attributes:
        kernel: Height and width of the window.
        strides: Down and across.
        pads: Top, left, bottom and right, smaller than the window.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Rounding:
    """Epilogue of a quantised operator: y = clip(round((sum + bias) · scale) + zero point), uint8.

    Attributes:
        scales: float32, ``[outputs]``: scales of the sums, x_scale · w_scale / y_scale.
        x_zero_point: In 0 to 255. That of the weight is 0.
        y_zero_point: In 0 to 255.
        low: Smallest y, at least 0: the activation's lower bound.
        high: Largest y, at most 255: the activation's upper bound.
        then: What follows the rounding, of a convolution in blocks of outputs.
    """

    scales: np.ndarray
    x_zero_point: int
    y_zero_point: int
    low: int = 0
    high: int = 255
    then: Addition | MaxPool | None = None


@dataclass(frozen=True)
class Scaling:
    """Epilogue of a quantised matrix product that goes on in floats:

    z = activation(sum · scale + bias + residual), y = z or round(z / y_scale) + zero point, uint8.

    Attributes:
        scales: float32, ``[outputs]``, at most ``LARGEST_SCALE``: x_scale · w_scale.
        x_zero_point: In 0 to 255. That of the weight is 0.
        activation: As that of a float operator.
        output: Scale and zero point of y if it is rounded to uint8; there is no residual then.
    """

    scales: np.ndarray
    x_zero_point: int
    activation: Activation = NO_ACTIVATION
    output: tuple[float, int] | None = None


_THEN = {type(None): "", Addition: "Add", MaxPool: "MaxPool"}
LARGEST_SCALE = 1e28
LARGEST_BIAS = 1e38
"""Larger numbers could leave float32 when they are multiplied with sums, or added to them."""
Epilogue = Activation | Rounding | Scaling


def sparse_node(
    name: str,
    x: ir.Value,
    y: str,
    weight: Packed,
    *,
    window: Window | None = None,
    bias: np.ndarray | None = None,
    residual: ir.Value | None = None,
    epilogue: Epilogue = NO_ACTIVATION,
    planes: Collection[str] = (),
    depthwise: Depthwise | None = None,
) -> ir.Node:
    """Build ``y = epilogue(x ∘ W + bias + residual)``, ∘ a matrix product or a convolution.

    Args:
        name: Name of the node; the constants' names begin with it.
        x: Input: ``[..., inputs]``, ``[N, C, H, W]``, ``[N, C, W]`` or that of ``planes_shape``;
            uint8 for a quantised operator, else float32.
        y: Name of the output.
        weight: Packed; int8 for a quantised operator, else float32. Its groups are those of the
            convolution.
        window: Convolution window; None for matmul.
        bias: Shape ``[outputs]``, float32; int32 in steps of x_scale · w_scale before a Rounding.
        residual: Tensor of y's shape and type: float32, or uint8 of an Addition.
        epilogue: What follows the sums; its type decides whether the operator is quantised.
        planes: Names of the values in the layout planes. The others are in nchw.
        depthwise: The depthwise convolution that follows; y is then its result. All images are in
            nchw.
    Returns:
        A node with one output. The inputs that belong to no graph are its constants.
    Raises:
        ValueError: If weight, window, bias or epilogue do not fit.
    """
    kind = _kind(epilogue, window, residual, depthwise)
    whole = isinstance(epilogue, Rounding)
    _check_outputs("bias", bias, np.int32 if whole else np.float32, weight)
    arrays = {"values": weight.values, "indices": weight.indices, "starts": weight.starts}
    if not isinstance(epilogue, Activation):
        _check_outputs("scales", epilogue.scales, np.float32, weight)
        arrays |= {"scales": epilogue.scales}
    attributes = _matmul(weight) if window is None else _convolution(weight, window)
    attributes |= _epilogue_attributes(epilogue)
    if isinstance(epilogue, Activation) or weight.block.axis == "outputs":
        attributes |= {"block": weight.block.size}
    if kind == "SparseConv":
        ends = {"input": x.name, "output": y, "residual": residual.name if residual else y}
        attributes |= {f"{end}_layout": _layout(value, planes) for end, value in ends.items()}
    adds_residual = kind in _WITH_RESIDUAL
    if bias is not None or adds_residual or depthwise is not None:
        arrays |= {"bias": bias}
    if depthwise is not None:
        _check_outputs("the depthwise bias", depthwise.bias, np.float32, weight)
        arrays |= {"depthwise_weights": depthwise.weight}
        arrays |= {} if depthwise.bias is None else {"depthwise_bias": depthwise.bias}
        attributes |= _depthwise_attributes(depthwise)
    return ir.node(
        kind,
        [x, *constant_inputs(name, arrays), *([residual] if adds_residual else [])],
        dict(sorted(attributes.items())),
        domain=DOMAIN,
        name=name,
        outputs=[ir.Value(name=y)],
    )


def _kind(
    epilogue: Epilogue,
    window: Window | None,
    residual: ir.Value | None,
    depthwise: Depthwise | None,
) -> str:
    """Return the operator's name."""
    if isinstance(epilogue, Activation):
        kind = "SparseLinear" if window is None else "SparseConv"
    elif isinstance(epilogue, Rounding):
        if epilogue.then is not None and window is None:
            raise ValueError("only a quantised convolution adds a residual or pools its result.")
        kind = "SparseQLinear" if window is None else "SparseQConv"
        kind += _THEN[type(epilogue.then)]
    elif window is not None:
        raise ValueError("a quantised convolution cannot go on in floats: its epilogue is Rounding")
    else:
        kind = f"SparseQLinear{'ViaFloat' if epilogue.output else 'ToFloat'}"
    if depthwise is not None:
        if kind != "SparseConv" or len(window.strides) != 2:
            raise ValueError(
                f"only a SparseConv of two axes takes a depthwise one with it. Got {kind}."
            )
        kind = "SparseConvDepthwise"
    if residual is not None and kind not in _WITH_RESIDUAL:
        raise ValueError(f"{kind} has no residual. Got {residual.name!r}.")
    if kind == "SparseQConvAdd" and residual is None:
        raise ValueError("an addition must have a residual. Got none.")
    return kind


def _epilogue_attributes(epilogue: Epilogue) -> dict[str, Any]:
    if isinstance(epilogue, Rounding):
        return {
            "x_zero_point": epilogue.x_zero_point,
            "y_zero_point": epilogue.y_zero_point,
            "min": epilogue.low,
            "max": epilogue.high,
        } | _then_attributes(epilogue.then)
    if isinstance(epilogue, Scaling):
        given = _epilogue_attributes(epilogue.activation) | {"x_zero_point": epilogue.x_zero_point}
        if epilogue.output is not None:
            scale, zero_point = epilogue.output
            given |= {"y_scale": float(scale), "y_zero_point": int(zero_point)}
        return given
    given = {"activation": epilogue.kind}
    if epilogue.clip is not None:
        given |= {"min": float(epilogue.clip[0]), "max": float(epilogue.clip[1])}
    return given


def _then_attributes(then: Addition | MaxPool | None) -> dict[str, Any]:
    if isinstance(then, MaxPool):
        return {
            "pool_kernel_shape": list(then.kernel),
            "pool_strides": list(then.strides),
            "pool_pads": list(then.pads),
        }
    if isinstance(then, Addition):
        return {
            "add_factor": then.factor,
            "add_residual_factor": then.residual_factor,
            "add_offset": then.offset,
            "add_shift": then.shift,
            "add_min": then.low,
            "add_max": then.high,
        }
    return {}


def _depthwise_attributes(depthwise: Depthwise) -> dict[str, Any]:
    window = depthwise.window
    given = _epilogue_attributes(depthwise.activation) | {"name": depthwise.name}
    given |= {"strides": list(window.strides), "pads": list(window.pads)}
    return {f"depthwise_{key}": value for key, value in given.items()}


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


def recorded_planes_shape(shape: ir.Shape | None) -> ir.Shape | None:
    """Return the shape in the layout ``planes`` of images with a recorded shape, as far as that is
    known. ONNX Runtime lets a value reuse another one's memory only if both have the same recorded
    shape.

    Args:
        shape: ``[N, C, H, W]`` or ``[N, C, W]``, in which N may have a name; None if unknown.
    """
    if shape is None or len(shape) not in (3, 4):
        return None
    batch, *sizes = shape
    # Some files record -1 for an unknown size, as ONNX Runtime accepts.
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    channels, *size = sizes
    height, width = (1, *size)[-2:]
    spare, *others = planes_shape(0, channels, height, width)
    first = None
    if isinstance(batch, int):
        first = batch * channels + spare if batch >= 0 else None
    elif batch.value is not None:
        first = f"{batch.value}*{channels}+{spare}"
    return ir.Shape((first, *others))


def constant_inputs(name: str, arrays: Mapping[str, np.ndarray | None]) -> list[ir.Value | None]:
    """Return the constant inputs of a node; None for an omitted one."""
    return [
        None
        if array is None
        else ir.Value(name=f"{name}.{key}", const_value=ir.tensor(array, name=f"{name}.{key}"))
        for key, array in arrays.items()
    ]


def _layout(name: str, planes: Collection[str]) -> str:
    return "planes" if name in planes else "nchw"


def _matmul(weight: Packed) -> dict[str, Any]:
    """Return the sizes of a matrix product, as attributes."""
    if len(weight.shape) != 2:
        raise ValueError(f"weight must be packed from [outputs, inputs]. Got {weight.shape}.")
    return {"out_features": weight.shape[0], "in_features": weight.shape[1]}


def _convolution(weight: Packed, window: Window) -> dict[str, Any]:
    """Return the sizes, strides, pads and dilations of a convolution, as attributes."""
    axes = len(weight.shape) - 2
    if axes not in (1, 2):
        raise ValueError(
            f"weight must be packed from [outputs, C, h, w] or [outputs, C, w]. Got {weight.shape}."
        )
    if not len(window.strides) == len(window.dilations) == len(window.pads) / 2 == axes:
        raise ValueError(
            f"strides, dilations and pads must be for {axes} axes. Got {list(window.strides)}, "
            f"{list(window.dilations)} and {list(window.pads)}."
        )
    return {
        "out_channels": weight.shape[0],
        "in_channels": weight.shape[1] * weight.group,
        "group": weight.group,
        "kernel_shape": list(weight.shape[2:]),
        "strides": list(window.strides),
        "pads": list(window.pads),
        "dilations": list(window.dilations),
    }


def _check_outputs(
    name: str, array: np.ndarray | None, dtype: type[np.generic], weight: Packed
) -> None:
    if array is not None and (array.dtype != dtype or array.shape != weight.shape[:1]):
        raise ValueError(
            f"{name} must be {np.dtype(dtype)} [{weight.shape[0]}]. "
            f"Got {array.dtype} {array.shape}."
        )
