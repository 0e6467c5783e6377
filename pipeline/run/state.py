"""The model on its way from step to step: weights, buffers and masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mfac_compress.pipeline.file_names import MASKS, WEIGHTS
from mfac_compress.pipeline.weights import restore


@dataclass(frozen=True)
class State:
    """What a step hands to the next one.

    Args:
        tensors: Parameters and buffers by name, tied ones under every name. On the CPU.
        masks: Mask of each pruned parameter by name, True = kept. On the CPU.
    """

    tensors: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, masks: Mapping[str, Tensor]) -> "State":
        """Copy a model's state.

        Extra state that is no tensor stays with the module: the checkpoint's is in every copy.
        """
        state = module.state_dict()
        return cls(
            {name: _copy(value) for name, value in state.items() if isinstance(value, Tensor)},
            {name: _copy(mask) for name, mask in masks.items()},
        )

    @classmethod
    def load(cls, folder: Path) -> "State":
        """Read back what :meth:`save` wrote."""
        return cls(load_file(folder / WEIGHTS), load_file(folder / MASKS))

    def save(self, folder: Path) -> None:
        """Write weights and masks to a folder, a file each."""
        save_file(dict(self.tensors), folder / WEIGHTS)
        save_file(dict(self.masks), folder / MASKS)

    def into(self, module: nn.Module) -> nn.Module:
        """Give the weights and buffers to a copy of the model; returns ``module``."""
        return restore(module, self.tensors)

    @property
    def sparsity(self) -> float:
        """Share of removed weights over all masks."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return 1 - kept / sum(mask.numel() for mask in self.masks.values())


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
