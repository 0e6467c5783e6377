"""Recognise the operators that multiply a weight tensor with their input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mfac_compress.mfac.layerwise.operators import Convolution, Linear, Operator

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Product:
    """An operator, and how its weight operand is a stack of matrices.

    Args:
        node: The operator.
        input: What it multiplies the weights with.
        operator: How inputs and outputs are laid out.
        bias: What it adds to the output; None if nothing.
        matrices: Brings the operand's elements into the shape ``[g, r, k]``.
    """

    node: Node
    input: Node
    operator: Operator
    bias: Node | None
    matrices: Callable[[Tensor], Tensor]


def product(node: Node, weight: Node) -> Product | str:
    """Read an operator as the product of weights and an input.

    Args:
        node: The operator.
        weight: The argument that holds weights.

    Returns:
        The product, or the reason why it is none.
    """
    reader = _READERS.get(node.target)
    found = reader(node, weight, _arguments(node)) if reader else None
    if found is not None:
        return found
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    if reader:
        return f"{name} does not use it as a matrix that multiplies an input"
    return f"{name} is no product of a weight matrix and an input"


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operator by name, with its defaults."""
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False))
    return {
        a.name: given.get(
            a.name, node.kwargs.get(a.name, a.default_value if a.has_default_value() else None)
        )
        for a in schema
    }


def _linear(node: Node, weight: Node, args: dict[str, Any]) -> Product | None:
    if args["weight"] is not weight or args["input"] is weight or _ndim(weight) != 2:
        return None
    rows, columns = _shape(weight)
    return Product(
        node, args["input"], Linear(rows, columns), args["bias"], lambda w: w.unsqueeze(0)
    )


def _addmm(node: Node, weight: Node, args: dict[str, Any]) -> Product | None:
    if args["beta"] != 1 or args["alpha"] != 1 or args["self"] is weight:
        return None
    return _product_of_matrices(node, weight, args["mat1"], args["mat2"], args["self"])


def _mm(node: Node, weight: Node, args: dict[str, Any]) -> Product | None:
    first, second = list(args.values())[:2]
    return _product_of_matrices(node, weight, first, second, None)


def _product_of_matrices(
    node: Node, weight: Node, first: Node, second: Node, bias: Node | None
) -> Product | None:
    if _ndim(weight) != 2 or first is second:
        return None
    if second is weight:
        columns, rows = _shape(weight)
        return Product(node, first, Linear(rows, columns), bias, lambda w: w.T.unsqueeze(0))
    if bias is not None or _ndim(second) < 2:
        return None
    rows, columns = _shape(weight)
    return Product(node, second, Linear(rows, columns, axis=-2), None, lambda w: w.unsqueeze(0))


def _convolution(node: Node, weight: Node, args: dict[str, Any]) -> Product | None:
    x = args["input"]
    if args["weight"] is not weight or x is weight or _ndim(x) != _ndim(weight):
        return None
    kernel, groups = _shape(weight)[2:], args["groups"]
    stride, dilation = (_each(args[name], kernel) for name in ("stride", "dilation"))
    if args.get("transposed", "transpose" in str(node.target)):
        padding = _each(args["padding"], kernel)
        operator = Convolution(
            groups=groups,
            rows=_shape(weight)[1],
            channels=_shape(weight)[0] // groups,
            kernel=kernel,
            stride=(1,) * len(kernel),
            dilation=dilation,
            before=tuple(
                (k - 1) * d - p for k, d, p in zip(kernel, dilation, padding, strict=True)
            ),
            spread=stride,
            transposed=True,
        )
        return Product(node, x, operator, args["bias"], lambda w: _mirrored(w, groups))
    operator = Convolution(
        groups=groups,
        rows=_shape(weight)[0] // groups,
        channels=_shape(weight)[1],
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        before=_padding(args["padding"], kernel, dilation),
        spread=(1,) * len(kernel),
    )
    return Product(node, x, operator, args["bias"], lambda w: w.reshape(groups, operator.rows, -1))


def _mirrored(weight: Tensor, groups: int) -> Tensor:
    """``[I, O/g, kernel...]`` of a transposed convolution -> ``[g, O/g, I/g · kernel]``."""
    apart = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return apart.flip(*range(3, apart.ndim)).flatten(2)


def _padding(
    padding: str | list[int], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """Zeros put before each axis."""
    if padding == "same":
        return tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    return (0,) * len(kernel) if padding == "valid" else _each(padding, kernel)


def _each(values: list[int], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """One value for each axis; a lone one counts for all."""
    return tuple(values) if len(values) == len(kernel) else tuple(values) * len(kernel)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _ndim(node: Node) -> int:
    return node.meta["val"].ndim


_READERS = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.matmul.default: _mm,
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.convolution.default: _convolution,
}
