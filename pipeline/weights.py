"""Weights and masks as files."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
MASKS = "masks.safetensors"


def save_weights(module: nn.Module, folder: Path) -> None:
    """Write the model's state, tied tensors once each under every name."""
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)


def load_weights(module: nn.Module, folder: Path) -> nn.Module:
    """Read back what :func:`save_weights` wrote; returns ``module``."""
    module.load_state_dict(load_state(folder))
    return module


def load_state(folder: Path) -> dict[str, Tensor]:
    """The state that :func:`save_weights` wrote, on the CPU."""
    return load_file(folder / WEIGHTS)


def save_masks(masks: dict[str, Tensor], folder: Path) -> None:
    """Write the masks, True = kept."""
    save_file({name: mask.cpu().clone() for name, mask in masks.items()}, folder / MASKS)


def load_masks(folder: Path) -> dict[str, Tensor]:
    """Read the masks by parameter name, True = kept."""
    return load_file(folder / MASKS)


def sparsity_of(masks: dict[str, Tensor]) -> float:
    """Share of removed weights over all masks."""
    kept = sum(int(mask.sum()) for mask in masks.values())
    return 1 - kept / sum(mask.numel() for mask in masks.values())
