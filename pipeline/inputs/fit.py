"""From a file's tensors to the model's: names, kinds of numbers, tied weights."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.quoting import dtype_name, listed
from mfac_compress.pipeline.weights import versioned

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_COUNTER_OF_AVERAGES = "n_averaged"
"""What ``torch.optim.swa_utils.AveragedModel`` keeps beside the model."""


@dataclass(frozen=True)
class Fit:
    """How a file's tensors became the model's.

    Attributes:
        prefix: What was taken off the file's names; with a plus sign, what was put before them.
        converted: Tensors that were floats of another width, and are float32 now.
    """

    prefix: str
    converted: int


def fit(
    module: nn.Module, weights: Mapping[str, Any], path: Path, factory: str, prefix: str | None
) -> Fit:
    """Load a state dict into the model that it belongs to.

    Args:
        module: The factory's model; its tensors change.
        weights: The file's tensors by name.
        path: The file, for messages.
        factory: The recipe's ``model.factory``, for messages.
        prefix: The recipe's ``model.prefix``; None to find what all names begin with.
    Returns:
        What was done to make them fit.
    Raises:
        InputError: If a tensor is missing, unknown, of another shape or of another kind.
    """
    subject = f"{path} must fit the model of model.factory {factory!r}."
    try:
        with user_code():
            expected = module.state_dict()
    except Exception as error:
        raise InputError(f"{subject} Its state_dict() raised {describe(error)}.") from error
    saved = getattr(weights, "_metadata", None)
    weights, taken_off = _renamed(weights, expected, prefix, path)
    _check_kinds(weights, path)
    converted = _converted(weights, expected, subject)
    state = versioned(weights | converted, expected)
    if isinstance(saved, Mapping):
        state._metadata = _moved(saved, taken_off)
    _load(module, state, expected, subject, taken_off)
    floats = [name for name in converted if weights[name].is_floating_point()]
    return Fit(taken_off, len(floats))


def _renamed(
    weights: Mapping[str, Any], expected: Mapping[str, Any], prefix: str | None, path: Path
) -> tuple[dict[str, Any], str]:
    """The weights under the model's names, and what was taken off the file's."""
    if prefix is not None:
        taken = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
        if not taken:
            raise InputError(
                f"model.prefix must be what names in {path} begin with. Got {prefix!r}; they are "
                f"{listed(list(weights))}."
            )
        return taken, prefix
    names = [name for name in weights if name != _COUNTER_OF_AVERAGES]
    candidates = _common_prefixes(names)
    best = max(candidates, key=lambda p: sum(name.removeprefix(p) in expected for name in names))
    if best:
        weights = {name: weights[name] for name in names}
    elif not expected.keys() & weights.keys():
        # The other way round: the factory wraps the model that was saved.
        for added in _common_prefixes(list(expected))[1:]:
            if all(added + name in expected for name in weights):
                return {added + name: value for name, value in weights.items()}, f"+{added}"
    return {name.removeprefix(best): value for name, value in weights.items()}, best


def _common_prefixes(names: Sequence[str]) -> list[str]:
    """What all names begin with, up to a dot; the shortest first."""
    if not names:
        return [""]
    low, high = min(names), max(names)
    parts = low.split(".")
    prefixes = [""] + [".".join(parts[:count]) + "." for count in range(1, len(parts))]
    return [prefix for prefix in prefixes if high.startswith(prefix)]


def _moved(versions: Mapping[str, Any], taken_off: str) -> dict[str, Any]:
    """The file's versions of modules under the model's names of them, and nothing else of it.

    PyTorch reads more there, such as whether tensors are to be put in the place of the model's.
    """
    added = taken_off[1:] if taken_off.startswith("+") else ""
    prefix = "" if added else taken_off
    ended = ((f"{added}{path}." if path else added, own) for path, own in versions.items())
    return {
        path.removeprefix(prefix).removesuffix("."): {"version": own["version"]}
        for path, own in ended
        if path.startswith(prefix) and isinstance(own, Mapping) and "version" in own
    }


def _check_kinds(weights: Mapping[str, Any], path: Path) -> None:
    """Check that all are plain tensors with values.

    Raises:
        InputError: If one is sparse, nested, quantised or without values.
    """
    kinds = {name: _kind(value) for name, value in weights.items() if isinstance(value, Tensor)}
    other = [f"{name} ({kind})" for name, kind in kinds.items() if kind]
    if other:
        raise InputError(
            f"{path} must hold plain dense tensors. Got {listed(other)}. "
            "Convert them, with to_dense() or dequantize(), and save the file again."
        )


def _kind(tensor: Tensor) -> str | None:
    """What a tensor is, where it is not a plain one."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return dtype_name(tensor.layout)
    if tensor.is_meta:
        return "without values"
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return type(tensor).__name__
    return None


def _converted(
    weights: Mapping[str, Any], expected: Mapping[str, Any], subject: str
) -> dict[str, Tensor]:
    """Tensors of another dtype than the model's, as the model's.

    Floats become float32 whatever their width; integers may change theirs if every value stays.

    Raises:
        InputError: If one is of another kind: complex or integer for a float, for example.
    """
    converted, misfits = {}, []
    for name, value in weights.items():
        wanted = getattr(expected.get(name), "dtype", None)
        if wanted is None or not isinstance(value, Tensor) or value.dtype == wanted:
            continue
        if {value.dtype, wanted} <= _FLOATS or _keeps_values(value, wanted):
            converted[name] = value.to(wanted)
        else:
            misfits.append(f"{name} (file {dtype_name(value.dtype)}, model {dtype_name(wanted)})")
    if misfits:
        raise InputError(
            f"{subject} {len(misfits)} of another kind of numbers: {listed(misfits)}. Save them "
            "as the model has them: a cast would lose what they say."
        )
    return converted


def _keeps_values(value: Tensor, wanted: torch.dtype) -> bool:
    if value.dtype == torch.uint8 and wanted == torch.bool:  # masks of PyTorch before 1.2
        return bool((value <= 1).all())
    same_kind = {value.dtype, wanted} <= _INTEGERS
    return same_kind and torch.equal(value.to(wanted).to(value.dtype), value)


def _load(
    module: nn.Module,
    weights: OrderedDict[str, Any],
    expected: Mapping[str, Any],
    subject: str,
    taken_off: str,
) -> None:
    misfits = {
        name: f"{name} (file {list(weights[name].shape)}, model {list(tensor.shape)})"
        for name, tensor in expected.items()
        if isinstance(tensor, Tensor)
        and not is_lazy(tensor)
        and isinstance(weights.get(name), Tensor)
        and weights[name].shape != tensor.shape
    }
    # PyTorch's own check knows what may be missing, such as batch-norm counters of old files.
    fitting = copy(weights)  # with the versions of modules
    for name in misfits:
        del fitting[name]
    ties = _ties(expected)
    try:
        with user_code():
            result = module.load_state_dict(fitting, strict=False)
    except Exception as error:
        raise InputError(f"{subject} Loading raised {describe(error)}.") from error
    missing = [name for name in result.missing_keys if name not in misfits]
    # safetensors keeps one of the names under which a model has the same tensor.
    missing = [name for name in missing if not ties.get(name, set()) & fitting.keys()]
    by_kind = {
        "missing in the file": missing,
        "unknown to the model": list(result.unexpected_keys),
        "of another shape": list(misfits.values()),
        "tied in the model, but not the same in the file": list(_torn(fitting, ties)),
    }
    found = [f"{len(names)} {what}: {listed(names)}" for what, names in by_kind.items() if names]
    if found:
        raise InputError(
            f"{subject} "
            + "; ".join(found)
            + _advice(weights, missing, result.unexpected_keys, taken_off)
        )


def _advice(
    weights: Mapping[str, Any],
    missing: list[str],
    unknown: Sequence[str],
    taken_off: str,
) -> str:
    said = f" (with {taken_off!r} taken off the file's names)." if taken_off else "."
    for name in unknown:
        ends = [other for other in missing if name.endswith("." + other)]
        prefix = name.removesuffix(max(ends, key=len)) if ends else None
        if prefix and all(prefix + other in weights for other in missing):
            return (
                f"{said} Set model.prefix to {taken_off + prefix!r}: with it all that is missing "
                "is there, and what has other names is left out."
            )
    return f"{said} Check the factory and model.kwargs."


def _ties(expected: Mapping[str, Any]) -> dict[str, set[str]]:
    """The other names of each tensor that the model has under several."""
    names: dict[tuple[Any, ...], set[str]] = {}
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.numel():
            same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            names.setdefault(same, set()).add(name)
    return {name: group - {name} for group in names.values() if len(group) > 1 for name in group}


def _torn(weights: Mapping[str, Any], ties: Mapping[str, set[str]]) -> list[str]:
    return [
        name
        for name, others in ties.items()
        for other in others & weights.keys()
        if name in weights and not torch.equal(weights[name], weights[other])
    ]
