"""What of a model's return value counts, as a plain tree of tensors.

A hook on the module does it, so that whoever calls the model gets the same: the loss, the
gradients, the export, the comparison with the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree, map_tensors
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.quoting import listed, shown, type_and_shape, with_article


def install_output(module: nn.Module, output: str | int | None) -> None:
    """Let a module return plain trees, and only one of its outputs where that is asked for.

    Args:
        module: Changed in place: it gets a forward hook, which copies of it have too.
        output: ``model.output`` of the recipe; None for all outputs.
    """
    path = () if output is None else tuple(str(output).split("."))
    module.register_forward_hook(_OutputHook(path))


class _OutputHook:
    def __init__(self, path: tuple[str, ...]) -> None:
        self._path = path

    def __call__(self, module: nn.Module, arguments: Any, returned: Any) -> Tree:
        del module, arguments
        for depth, name in enumerate(self._path):
            part = _part(returned, name)
            if part is None:
                raise InputError(_no_output(self._path[: depth + 1], returned))
            returned = part
        return plain_tree(returned)


def plain_tree(value: Any, name: str = "") -> Tree:
    """Turn what a model returns into tensors, tuples and dicts.

    Lists become tuples; mappings, named tuples and dataclasses become dicts. What is None is left
    out.

    Args:
        value: What it returned.
        name: Its place in the whole, for messages.
    Raises:
        InputError: If something in it is no tensor, or there is none.
    """
    if isinstance(value, Tensor):
        return value
    parts = _parts(value)
    if not parts:
        place = f" as {name!r}" if name else ""
        empty = isinstance(value, Mapping | tuple | list)
        got = f"an empty {type(value).__name__}" if empty else with_article(type(value).__name__)
        raise InputError(
            f"The model must return tensors, or tuples, dicts or dataclasses of them. Got {got}"
            f"{place}. Set model.output to the output to use, or wrap the model in model.factory."
        )
    tree = {
        key: plain_tree(part, f"{name}.{key}" if name else key)
        for key, part in parts.items()
        if part is not None
    }
    return tree if _has_names(value) else tuple(tree.values())


def join_batches(parts: Sequence[Tree], what: str) -> Tree:
    """Outputs or targets of a whole split from those of its batches.

    Args:
        parts: Trees of arrays ``[n, ...]``.
        what: Whose they are, for messages: ``outputs`` or ``targets``.
    Raises:
        InputError: If their shapes differ in more than n, as those of padded batches do.
    """
    try:
        return map_tensors(lambda *arrays: np.concatenate(arrays), *parts)
    except ValueError as error:
        shapes = listed(list(dict.fromkeys(map(type_and_shape, parts))), most=2, separator=" and ")
        raise InputError(
            f"task.metric needs {what} of one shape for all validation samples. Batches have "
            f"{shapes}. Pad all samples to one length in data.collate, or set model.output to an "
            "output whose shape is independent of the length."
        ) from error


def _part(value: Any, name: str) -> Any:
    parts = _parts(value)
    if parts or isinstance(value, Tensor):
        return parts.get(name)
    return getattr(value, name, None)


def _parts(value: Any) -> dict[str, Any]:
    """What a value is made of, by key, attribute or position; nothing where it is one thing."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or range(len(value))
        return {str(name): part for name, part in zip(names, value, strict=True)}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return {}


def _has_names(value: Any) -> bool:
    return not isinstance(value, tuple | list) or hasattr(value, "_fields")


def _no_output(path: tuple[str, ...], returned: Any) -> str:
    names = [shown(name) for name, part in _parts(returned).items() if part is not None]
    kind = with_article(type(returned).__name__)
    inner = f" as {shown('.'.join(path[:-1]))!r}" if len(path) > 1 else ""
    return (
        f"model.output must name an output of the model. Got {shown('.'.join(path))!r}. The model "
        f"returns {kind}{inner}{f', with {listed(names)}' if names else ''}."
    )
