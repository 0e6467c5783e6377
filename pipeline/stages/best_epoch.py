"""Which epoch of a training is kept: the one whose outputs are nearest to the dense model's.

What the training starts from counts as epoch 0, so that it can never end further away. The judge is
the divergence on held-out calibration samples, by which repairs are judged, too; no validation
sample takes part.
"""

from collections.abc import Mapping
from math import nan
from typing import Any

import torch
from torch import Tensor

from mfac_compress.pipeline.stages.divergence import is_nearer, reported


class BestEpoch:
    """The tensors of the best epoch so far.

    Args:
        tensors: Of the model as it is before the training.
        divergence: Of that.
        patience: Epochs without a better one after which the training ends; None for all epochs.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], divergence: float, patience: int | None
    ) -> None:
        self.divergences = [divergence]
        """Of each epoch, the first of them before the training."""
        self.epoch = 0
        """Number of the best one."""
        self._tensors, self._patience = copy_of(tensors), patience

    def add(self, tensors: Mapping[str, Tensor], divergence: float) -> None:
        """Note the next epoch, and keep its tensors if it is the best one."""
        if is_nearer(divergence, self.divergences[self.epoch]):
            self.epoch, self._tensors = len(self.divergences), copy_of(tensors)
        self.divergences.append(divergence)

    def restart(self, tensors: Mapping[str, Tensor], divergence: float) -> None:
        """Judge the newest epoch anew, in another way, and let no earlier one be the best.

        Args:
            tensors: Of the newest epoch.
            divergence: Of them, by which later epochs are compared with it.
        """
        self.divergences[-1] = divergence
        self.epoch, self._tensors = len(self.divergences) - 1, copy_of(tensors)

    @property
    def is_over(self) -> bool:
        """Whether the training has gone on for too long without a better epoch."""
        since = len(self.divergences) - 1 - self.epoch
        return self._patience is not None and since >= self._patience

    def into(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the best epoch's values into a model's tensors."""
        copy_into(tensors, self._tensors)

    def content(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {
            "divergences": [reported(one) for one in self.divergences],
            "epoch": self.epoch,
            "tensors": self._tensors,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from :meth:`content`."""
        self.divergences = [nan if one is None else one for one in content["divergences"]]
        self.epoch = content["epoch"]
        copy_into(self._tensors, content["tensors"])


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own, with the same values."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Overwrite tensors with the values of the same names."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
