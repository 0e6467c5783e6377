"""Reading the masks of a model from the file ``masks.safetensors`` that a run leaves."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

_WRAPPERS = {
    "module.": "DistributedDataParallel: give its .module",
    "_orig_mod.": "torch.compile: give the model that was compiled",
}
"""What the names of parameters begin with in a model that something else is wrapped around."""


def load_masks(path: str | Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read masks, and check that they are those of a model's parameters.

    Args:
        path: A safetensors file: name of a parameter to its mask, bool, True = kept.
        parameters: The model's, by name. Parameters without a mask are not pruned.

    Returns:
        The masks by name, on the CPU.

    Raises:
        ValueError: If the file cannot be read, holds no masks, or one that is not bool, of a
            parameter that the model does not have, or of another shape. All of them are named.
    """
    try:
        masks = load(Path(path).read_bytes())  # not mapped: the file may be written to later
    except Exception as error:  # for damaged files of several types, none of them documented
        raise ValueError(
            f"{path} must be a safetensors file of masks. It cannot be read "
            f"({type(error).__name__}: {error}). Take masks.safetensors of a run's directory."
        ) from error
    if not masks:
        raise ValueError(f"{path} must hold masks. It is empty. Take that of another run.")
    misfits = dict(_misfits(masks, parameters))
    if misfits:
        found = "; ".join(f"{name}: {reason}" for name, reason in misfits.items())
        raise ValueError(
            f"{path} must hold masks of the model's parameters, of their names and shapes. "
            f"{len(misfits)} of {len(masks)} do not fit: {found}. {_advice(masks, parameters)}"
        )
    return masks


def _misfits(
    masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> Iterator[tuple[str, str]]:
    for name, mask in masks.items():
        if name not in parameters:
            yield name, "the model has no such parameter"
        elif mask.shape != parameters[name].shape:
            yield name, f"{list(mask.shape)} for {list(parameters[name].shape)}"
        elif mask.dtype != torch.bool:
            yield name, f"{str(mask.dtype).removeprefix('torch.')}, not bool"


def _advice(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> str:
    for prefix, wrapper in _WRAPPERS.items():
        if all(prefix + name in parameters for name in masks):
            return f"The model is wrapped by {wrapper}."
    return (
        "Build the model that was pruned, with the same arguments, and without weight norm or "
        "other parametrizations; the weights beside the masks, in model.safetensors, fit it."
    )
