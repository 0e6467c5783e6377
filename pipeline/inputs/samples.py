"""The samples that a training loop of the user's is given: never those that judge the model."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from mfac_compress.mfac.batch import Batch, Tree, map_tensors
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples


class Samples(Dataset[tuple[Tree, Tree]]):
    """Samples as the model and the loss take them; a map-style data set of PyTorch as well.

    Args:
        samples: Which they are.
        device: Where batches are put.
        seed: Of orders and random changes.
    """

    def __init__(self, samples: TrainingSamples, device: torch.device, seed: int) -> None:
        self._split, self._device = samples.split, device
        self._positions = samples.order
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Tree, Tree]:
        """Inputs and targets of one sample on the CPU, without the axis of the batch.

        Raises:
            IndexError: If there are not so many, by which a ``for`` loop ends.
        """
        position = self._positions[index]
        batch = next(self._split.batches(1, indices=position[None]))
        inputs, targets = map_tensors(lambda tensor: tensor[0], batch)
        return inputs, targets

    def batches(
        self, batch_size: int, *, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """One pass over the samples, as pairs ``(inputs, targets)`` on the model's device.

        Args:
            batch_size: Samples in a batch; the last may be smaller.
            shuffle: In a random order, another one in each pass.
            augment: With the random changes of ``data.augment``, of those to train on.
        """
        batches = self._split.batches(
            batch_size,
            indices=self._positions,
            shuffle=shuffle,
            generator=self._generator,
            augment=augment,
        )
        return (batch.to(self._device) for batch in batches)


class LoopSplits(NamedTuple):
    """What a training loop is given. There are no validation samples among it.

    Args:
        recovery: To train on: those that ``recover.split`` says.
        holdout: Calibration samples that no gradient has seen, to choose by: when to stop, which
            epoch is best. Without labels where calibration needs none and the data has none.
    """

    recovery: Samples
    holdout: Samples
