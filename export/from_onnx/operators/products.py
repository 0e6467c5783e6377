"""Products and norms on tensors of any origin. Where these are weights: :mod:`layers`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.export.from_onnx.operators.windows import padded, pads_of
from mfac_compress.export.from_onnx.registry import Compute, Operator, operator

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("MatMul")
def _matmul(node: Operator) -> Compute:
    return torch.matmul


@operator("Gemm")
def _gemm(node: Operator) -> Compute:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    turn_a, turn_b = bool(node.get("transA", 0)), bool(node.get("transB", 0))

    def compute(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.T if turn_a else a) @ (b.T if turn_b else b)
        product = product * alpha if alpha != 1 else product
        if c is None:
            return product
        return product + (c * beta if beta != 1 else c)

    return compute


@operator("Conv")
def _conv(node: Operator) -> Compute:
    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        axes = weight.ndim - 2
        pads = pads_of(node, weight.shape[2:], x.shape[2:])
        strides, dilations = (node.get(name, [1] * axes) for name in ("strides", "dilations"))
        groups = node.get("group", 1)
        x = padded(x, pads)
        return _CONVOLUTIONS[axes](x, weight, bias, strides, 0, dilations, groups)

    return compute


@operator("ConvTranspose")
def _conv_transpose(node: Operator) -> Compute:
    if node.get("output_shape") or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refuse("with output_shape or auto_pad")

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        axes = weight.ndim - 2
        before, after = pads_of(node, weight.shape[2:], x.shape[2:])
        strides, dilations = (node.get(name, [1] * axes) for name in ("strides", "dilations"))
        more = node.get("output_padding", [0] * axes)
        # Pads that differ: PyTorch cuts the same from both ends.
        more = [m + b - a for m, b, a in zip(more, before, after, strict=True)]
        if min(more) < 0:
            raise ValueError("pads that are larger at the end")
        apply = _TRANSPOSED[axes]
        return apply(x, weight, bias, strides, [*before], more, node.get("group", 1), dilations)

    return compute


@operator("Einsum")
def _einsum(node: Operator) -> Compute:
    equation = node.get("equation")
    return lambda *operands: torch.einsum(equation, *operands)


@operator("BatchNormalization")
def _batch_norm(node: Operator) -> Compute:
    check_inference(node)
    eps = node.get("epsilon", 1e-5)
    return lambda x, scale, shift, mean, var: F.batch_norm(
        x, mean, var, scale, shift, training=False, eps=eps
    )


def check_inference(node: Operator) -> None:
    """Refuse a batch norm in training mode.

    Raises:
        UnsupportedError: If it is.
    """
    if node.get("training_mode", 0) or not node.first_only:
        raise node.refuse("in training mode")


@operator("LayerNormalization")
def _layer_norm(node: Operator) -> Compute:
    axis, eps = node.get("axis", -1), node.get("epsilon", 1e-5)
    if not node.first_only:
        raise node.refuse("with the mean as an output")

    def compute(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        scale = scale.expand(shape)
        shift = None if shift is None else shift.expand(shape)
        return F.layer_norm(x, shape, scale, shift, eps)

    return compute


@operator("RMSNormalization")
def _rms_norm(node: Operator) -> Compute:
    axis, eps = node.get("axis", -1), node.get("epsilon", 1e-5)
    return lambda x, scale: F.rms_norm(x, x.shape[axis:], scale.expand(x.shape[axis:]), eps)


@operator("InstanceNormalization")
def _instance_norm(node: Operator) -> Compute:
    eps = node.get("epsilon", 1e-5)
    return lambda x, scale, shift: _grouped(x, x.shape[1], scale, shift, eps)


@operator("GroupNormalization")
def _group_norm(node: Operator) -> Compute:
    groups, eps = node.get("num_groups"), node.get("epsilon", 1e-5)

    def compute(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if node.opset < 21:  # one number a group
            each = x.shape[1] // groups
            scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
        return _grouped(x, groups, scale, shift, eps)

    return compute


_grouped: Callable[..., Tensor] = F.group_norm
