"""Operators that work element by element."""

import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.export.from_onnx.registry import Compute, Operator, only_integers, operator
from mfac_compress.export.from_onnx.values import Known, Value, as_tensors, number

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin,
    "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil,
    "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan, "Log": torch.log,
    "Mish": F.mish, "Reciprocal": torch.reciprocal, "Relu": F.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh,
}  # fmt: skip
_WITH_SETTINGS: dict[str, Callable[[Operator], Callable[[Tensor], Tensor]]] = {
    "Celu": lambda node: lambda x: F.celu(x, node.get("alpha", 1.0)),
    "Elu": lambda node: lambda x: F.elu(x, node.get("alpha", 1.0)),
    "HardSigmoid": lambda node: (
        lambda x: torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)
    ),
    "LeakyRelu": lambda node: lambda x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "ThresholdedRelu": lambda node: lambda x: torch.where(x > node.get("alpha", 1.0), x, 0.0),
}
_TRUTH = torch.bool
_BINARY: dict[str, tuple[Callable[..., Any], Callable[..., Any], torch.dtype | None]] = {
    # On tensors, on Python's numbers, and the dtype of the result where it is another.
    "Add": (torch.add, python.add, None),
    "And": (torch.logical_and, lambda a, b: a and b, _TRUTH),
    "Equal": (torch.eq, python.eq, _TRUTH),
    "Greater": (torch.gt, python.gt, _TRUTH),
    "GreaterOrEqual": (torch.ge, python.ge, _TRUTH),
    "Less": (torch.lt, python.lt, _TRUTH),
    "LessOrEqual": (torch.le, python.le, _TRUTH),
    "Mul": (torch.mul, python.mul, None),
    "Or": (torch.logical_or, lambda a, b: a or b, _TRUTH),
    "Sub": (torch.sub, python.sub, None),
    "Xor": (torch.logical_xor, lambda a, b: bool(a) != bool(b), _TRUTH),
}


def _divide(a: Any, b: Any) -> Any:
    """Division of integers towards zero, as in C."""
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return a // b  # sizes, which are not negative


def _divide_tensors(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


_BINARY["Div"] = (_divide_tensors, _divide, None)


@operator(*_UNARY)
def _unary(node: Operator) -> Compute:
    return _UNARY[node.kind]


@operator(*_WITH_SETTINGS)
def _with_settings(node: Operator) -> Compute:
    return _WITH_SETTINGS[node.kind](node)


@operator(*_BINARY, sizes=True)
def _binary(node: Operator) -> Compute:
    on_tensors, on_numbers, dtype = _BINARY[node.kind]
    if node.opset < 7:
        raise node.refuse("of an opset before 7, which broadcasts by other rules")
    return _pairwise(node, on_tensors, on_numbers, dtype)


def _pairwise(
    node: Operator,
    on_tensors: Callable[..., Any],
    on_numbers: Callable[..., Any],
    dtype: torch.dtype | None,
) -> Compute:
    each = np.frompyfunc(lambda a, b: _in_64_bits(on_numbers(a, b)), 2, 1)

    def compute(a: Value, b: Value) -> Value:
        if only_integers((a, b)):
            return Known.of(each(a.array, b.array), dtype or a.dtype)
        return on_tensors(*as_tensors((a, b), node.device()))

    return compute


def _in_64_bits(number: Any) -> Any:
    """An integer as its overflow leaves it: Python's would grow without end."""
    if not isinstance(number, int) or -(2**63) <= number < 2**63:
        return number
    return (number + 2**63) % 2**64 - 2**63


@operator("Not", sizes=True)
def _not(node: Operator) -> Compute:
    def compute(x: Value) -> Value:
        if isinstance(x, Known):
            return Known.of(np.frompyfunc(lambda a: not a, 1, 1)(x.array), torch.bool)
        return torch.logical_not(x)

    return compute


@operator("Neg", sizes=True)
def _neg(node: Operator) -> Compute:
    return lambda x: Known.of(-x.array, x.dtype) if isinstance(x, Known) else -x


@operator("Max", "Min", "Sum", "Mean", sizes=True)
def _several(node: Operator) -> Compute:
    on_tensors, on_numbers = {
        "Max": (torch.maximum, max),
        "Min": (torch.minimum, min),
        "Sum": (torch.add, python.add),
        "Mean": (torch.add, python.add),
    }[node.kind]
    pair = _pairwise(node, on_tensors, on_numbers, None)

    def compute(*values: Value) -> Value:
        total = reduce(pair, values)
        return total / len(values) if node.kind == "Mean" else total

    return compute


@operator("Mod", sizes=True)
def _mod(node: Operator) -> Compute:
    as_in_c = bool(node.get("fmod", 0))
    return _pairwise(node, torch.fmod if as_in_c else torch.remainder, python.mod, None)


@operator("Pow")
def _pow(node: Operator) -> Compute:
    return lambda x, exponent: torch.pow(x, exponent).to(x.dtype)


@operator("PRelu")
def _prelu(node: Operator) -> Compute:
    return lambda x, slope: torch.where(x < 0, x * slope, x)


@operator("Selu")
def _selu(node: Operator) -> Compute:
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.050701)
    return lambda x: gamma * F.elu(x, alpha)


@operator("Gelu")
def _gelu(node: Operator) -> Compute:
    how = _text(node.get("approximate", "none"))
    return lambda x: F.gelu(x, approximate=how)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@operator("IsInf")
def _isinf(node: Operator) -> Compute:
    negative, positive = node.get("detect_negative", 1), node.get("detect_positive", 1)
    return lambda x: torch.isinf(x) & ((x < 0) & bool(negative) | (x > 0) & bool(positive))


@operator("Clip", sizes=True)
def _clip(node: Operator) -> Compute:
    low, high = node.get("min"), node.get("max")  # attributes before opset 11

    def compute(x: Value, least: Value = None, most: Value = None) -> Value:
        bounds = [
            given if bound is None else number(bound)
            for given, bound in ((low, least), (high, most))
        ]
        (x,) = as_tensors((x,), node.device())
        return x if bounds == [None, None] else torch.clamp(x, *bounds)

    return compute


@operator("Where", sizes=True)
def _where(node: Operator) -> Compute:
    def compute(condition: Value, a: Value, b: Value) -> Value:
        if only_integers((condition, a, b)):
            choose = np.frompyfunc(lambda c, x, y: x if c else y, 3, 1)
            return Known.of(choose(condition.array, a.array, b.array), a.dtype)
        return torch.where(*as_tensors((condition, a, b), node.device()))

    return compute


@operator("Identity", sizes=True)
def _identity(node: Operator) -> Compute:
    return lambda x: x


@operator("Dropout", sizes=True)
def _dropout(node: Operator) -> Compute:
    if not node.first_only:
        raise node.refuse("with a mask as its second output")

    def compute(x: Value, _ratio: Value = None, training: Value = None) -> Value:
        if training is not None and number(training, "its mode"):
            raise ValueError("it is in training mode")
        return x

    return compute


DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""By ONNX's number of an element type."""


@operator("Cast", "CastLike", sizes=True)
def _cast(node: Operator) -> Compute:
    fixed = None
    if node.kind == "Cast":
        fixed = DTYPES.get(node.get("to"))
        if fixed is None:
            raise node.refuse(f"to element type {node.get('to')}")

    def compute(x: Value, like: Value = None) -> Value:
        dtype = fixed or like.dtype
        if isinstance(x, Known) and x.is_integer and not dtype.is_floating_point:
            turn = bool if dtype is torch.bool else (lambda a: a + 0)  # a symbol stays one
            return Known.of(np.frompyfunc(turn, 1, 1)(x.array), dtype)
        (x,) = as_tensors((x,), node.device())
        return x.to(dtype)

    return compute
