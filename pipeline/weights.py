"""Weights and masks as files."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mfac_compress.pipeline.file_names import MASKS, WEIGHTS

_STATISTICS = {"running_mean", "running_var"}
"""Buffers that PyTorch's normalisation layers estimate."""


def save_weights(module: nn.Module, folder: Path) -> None:
    """Write the model's state, tied tensors once each under every name.

    Extra state that is no tensor stays with the module: the checkpoint's is in every copy of it.
    """
    state = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }
    save_file(state, folder / WEIGHTS)


def load_weights(module: nn.Module, folder: Path) -> nn.Module:
    """Read back what :func:`save_weights` wrote; returns ``module``."""
    return restore(module, load_state(folder))


def restore(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Give a copy of the model what :func:`load_state` read; returns ``module``."""
    result = module.load_state_dict(state, strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("_extra_state")]
    assert not missing, missing
    assert not result.unexpected_keys, result.unexpected_keys
    return module


def load_state(folder: Path) -> dict[str, Tensor]:
    """The state that :func:`save_weights` wrote, on the CPU."""
    return load_file(folder / WEIGHTS)


def not_finite(module: nn.Module) -> list[str]:
    """Name what is not finite and ought to be.

    Parameters and batch norm's running statistics must be finite. Other buffers are the model's
    constants and may hold infinities, as a causal mask does, but not NaN.
    """
    broken = [name for name, value in module.named_parameters() if not bool(value.isfinite().all())]
    for name, value in module.named_buffers():
        is_statistic = name.rpartition(".")[2] in _STATISTICS
        sound = value.isfinite() if is_statistic else ~value.isnan()
        if not bool(sound.all()):
            broken.append(name)
    return broken


def save_masks(masks: dict[str, Tensor], folder: Path) -> None:
    """Write the masks, True = kept."""
    row_major = torch.contiguous_format
    copies = {name: mask.cpu().clone(memory_format=row_major) for name, mask in masks.items()}
    save_file(copies, folder / MASKS)


def load_masks(folder: Path) -> dict[str, Tensor]:
    """Read the masks by parameter name, True = kept."""
    return load_file(folder / MASKS)


def sparsity_of(masks: dict[str, Tensor]) -> float:
    """Share of removed weights over all masks."""
    kept = sum(int(mask.sum()) for mask in masks.values())
    return 1 - kept / sum(mask.numel() for mask in masks.values())
