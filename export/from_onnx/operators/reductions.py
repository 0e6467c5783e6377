"""Operators that sum up along axes."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from mfac_compress.export.from_onnx.registry import Compute, Operator, operator
from mfac_compress.export.from_onnx.values import Known, Value, as_tensors, number, numbers

_Axes = list[int]


def _product(x: Tensor, axes: _Axes) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, _Axes], Tensor]] = {
    "ReduceL1": lambda x, axes: x.abs().sum(axes, keepdim=True),
    "ReduceL2": lambda x, axes: x.square().sum(axes, keepdim=True).sqrt(),
    "ReduceLogSum": lambda x, axes: x.sum(axes, keepdim=True).log(),
    "ReduceLogSumExp": lambda x, axes: torch.logsumexp(x, axes, keepdim=True),
    "ReduceMax": lambda x, axes: torch.amax(x, axes, keepdim=True),
    "ReduceMean": lambda x, axes: x.mean(axes, keepdim=True),
    "ReduceMin": lambda x, axes: torch.amin(x, axes, keepdim=True),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes: x.sum(axes, keepdim=True, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes: x.square().sum(axes, keepdim=True),
}
_OF_INTEGERS = {"ReduceMax": max, "ReduceMin": min, "ReduceProd": prod, "ReduceSum": sum}


@operator(*_REDUCTIONS, sizes=True)
def _reduce(node: Operator) -> Compute:
    fixed, keep = node.get("axes"), bool(node.get("keepdims", 1))
    nothing = bool(node.get("noop_with_empty_axes", 0))
    reduction, of_integers = _REDUCTIONS[node.kind], _OF_INTEGERS.get(node.kind)

    def compute(x: Value, axes: Value = None) -> Value:
        chosen = [*(fixed or ())] if axes is None else numbers(axes, "its axes")
        if isinstance(x, Known) and x.is_integer and x.array.ndim == 1 and of_integers:
            total = of_integers(x.array.tolist())
            return Known.of([total] if keep else total, x.dtype)
        (x,) = as_tensors((x,), node.device())
        if not chosen and nothing:
            return x
        places = sorted(axis % x.ndim for axis in chosen) if chosen else [*range(x.ndim)]
        result = reduction(x, places)
        return result if keep else result.squeeze(tuple(places))

    return compute


@operator("ArgMax", "ArgMin")
def _arg(node: Operator) -> Compute:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    find = torch.argmax if node.kind == "ArgMax" else torch.argmin
    if node.get("select_last_index", 0):
        raise node.refuse("with select_last_index")
    return lambda x: find(x, axis, keepdim=keep)


@operator("Softmax", "LogSoftmax")
def _softmax(node: Operator) -> Compute:
    compute = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    axis = node.get("axis", -1 if node.opset >= 13 else 1)
    if node.opset >= 13:
        return lambda x: compute(x, axis)

    def over_all_later_axes(x: Tensor) -> Tensor:
        place = axis % x.ndim
        return compute(x.flatten(place), -1).reshape(x.shape)

    return over_all_later_axes


@operator("CumSum", sizes=True)
def _cumsum(node: Operator) -> Compute:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise node.refuse("that is exclusive or reversed")

    def compute(x: Value, axis: Value) -> Tensor:
        place = number(axis, "its axis")
        (x,) = as_tensors((x,), node.device())
        return torch.cumsum(x, place, dtype=x.dtype)

    return compute


@operator("LpNormalization")
def _lp_normalization(node: Operator) -> Compute:
    axis, power = node.get("axis", -1), node.get("p", 2)

    def compute(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, power, axis, keepdim=True)
        return torch.where(norm == 0, 0.0, x / norm)

    return compute
