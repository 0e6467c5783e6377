"""Items of the user's own data sets, and what their collate function returns, as trees."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch, Tree, map_tensors
from mfac_compress.pipeline.inputs.dataset import as_target
from mfac_compress.pipeline.quoting import dtype_name, shown, with_article

_MOST_AXES = 32
_REAL = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


class ItemError(ValueError):
    """An item that cannot be used, in words that follow its name."""


def as_batch(item: Any, target: str, *, labelled: bool = True) -> Batch:
    """Take an item, or a collated batch, apart into trees of tensors.

    Args:
        item: ``(inputs, targets)``, or a dict.
        target: Key of the targets in a dict.
        labelled: Whether a dict must have them. Where it has none they are 0.
    Returns:
        Of an item a batch without the dimension that counts samples.
    Raises:
        ItemError: If it is of another form, or holds what cannot be made a tensor.
    """
    if isinstance(item, Mapping):
        parts = dict(item)
        if labelled and target not in parts:
            names = ", ".join(map(shown, parts)) or "nothing"
            raise ItemError(
                f"has no {shown(target)!r}, the target. It has {names}. Set task.target"
            )
        targets = parts.pop(target, 0)
        if not parts:
            raise ItemError(f"has nothing but {shown(target)!r}, the target")
        return _batch(parts, targets)
    if isinstance(item, tuple | list) and len(item) == 2:
        return _batch(*item)
    length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise ItemError(
        f"is {with_article(type(item).__name__)}{length}, and neither (inputs, targets) nor a dict"
    )


def _batch(inputs: Any, targets: Any) -> Batch:
    return Batch(
        map_tensors(_as_input, _as_tree(inputs, "inputs")),
        map_tensors(as_target, _as_tree(targets, "targets")),
    )


def _as_input(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values


def _as_tree(value: Any, name: str) -> Tree:
    if isinstance(value, Tensor | np.ndarray | np.generic | int | float):
        return _as_tensor(value, name)
    if isinstance(value, Mapping):
        if not value or not all(isinstance(key, str) for key in value):
            raise ItemError(f"has a dict as {name} whose keys are not all text, or that is empty")
        return {key: _as_tree(part, f"{name}.{shown(key)}") for key, part in value.items()}
    if isinstance(value, list) and _is_numbers(value):
        return _as_tensor(value, name)
    if isinstance(value, tuple | list) and value:
        return tuple(_as_tree(part, f"{name}.{at}") for at, part in enumerate(value))
    raise ItemError(
        f"has {with_article(type(value).__name__)} as {name}, and not a tensor, an array, a number "
        "or a list of numbers, or a tuple or dict of these"
    )


def _is_numbers(value: list[Any]) -> bool:
    """Whether a list holds numbers, or lists of them; told by the first."""
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, int | float | np.generic)


def _as_tensor(value: Any, name: str) -> Tensor:
    """Values on the CPU, without a history of gradients."""
    try:
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        values = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ItemError(f"has {name} that cannot be made a tensor: {shown(error)}") from None
    dense = values.layout == torch.strided and not (values.is_nested or values.is_meta)
    small = values.numel() > 0 and values.ndim <= _MOST_AXES
    if not dense or values.dtype not in _REAL or not small:
        kind = dtype_name(values.dtype) if dense else dtype_name(values.layout)
        raise ItemError(
            f"has {name} of {kind} {list(values.shape)}, and must have dense tensors of real "
            f"numbers, of {_MOST_AXES} axes at most and none of them empty"
        )
    return values.detach().cpu().contiguous()
