"""Items of the user's own data sets, and what their collate function returns, as trees."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch, Tree, map_tensors
from mfac_compress.pipeline.inputs.dataset import as_target, named_parts
from mfac_compress.pipeline.quoting import dtype_name, shown, with_article

_MOST_AXES = 32
_REAL = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


class ItemError(ValueError):
    """An item that cannot be used, in words that follow its name."""


def as_batch(item: Any, target: str, default: Any = None) -> Batch:
    """Take an item, or a collated batch, apart into trees of tensors, not checked yet.

    Args:
        item: ``(inputs, targets)``, or a dict.
        target: Key of the targets in a dict.
        default: Targets of a dict without any; None where it must have them.
    Returns:
        Of an item a batch without the dimension that counts samples.
    Raises:
        ItemError: If it is of another form, or holds what cannot be made a tensor.
    """
    if isinstance(item, Mapping):
        parts = dict(item)
        targets = parts.pop(target, default)
        if targets is None or not parts:
            names = ", ".join(map(shown, item)) or "nothing"
            raise ItemError(
                f"must have {shown(target)!r}, the target, and inputs. It has {names}. Set "
                "task.target"
            )
        item = parts, targets
    if not isinstance(item, tuple | list) or len(item) != 2:
        length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        kind = f"{with_article(type(item).__name__)}{length}"
        raise ItemError(f"is {kind}, and neither (inputs, targets) nor a dict")
    return Batch(_as_tree(item[0], "inputs"), _as_tree(item[1], "targets"))


def as_plain(batch: Batch) -> Batch:
    """A batch on the CPU, without a history of gradients, of the types that models take.

    Raises:
        ItemError: If a tensor is not dense, of real numbers and not empty.
    """
    for name, tensor in named_parts(batch):
        _check_plain(name, tensor)
    inputs, targets = map_tensors(lambda tensor: tensor.detach().cpu().contiguous(), batch)
    return Batch(map_tensors(_as_input, inputs), map_tensors(as_target, targets))


def _as_input(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values


def _as_tree(value: Any, name: str) -> Tree:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic | int | float):
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
    try:
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ItemError(f"has {name} that cannot be made a tensor: {shown(error)}") from None


def _check_plain(name: str, values: Tensor) -> None:
    dense = values.layout == torch.strided and not (values.is_nested or values.is_meta)
    small = values.numel() > 0 and values.ndim <= _MOST_AXES
    if not dense or values.dtype not in _REAL or not small:
        kind = dtype_name(values.dtype) if dense else dtype_name(values.layout)
        raise ItemError(
            f"has {name} of {kind} {list(values.shape)}, and must have dense tensors of real "
            f"numbers, of {_MOST_AXES} axes at most and none of them empty"
        )
