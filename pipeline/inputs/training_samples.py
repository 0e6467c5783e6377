"""What a model is trained on: a split, or a part of one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.digest import content_key
from mfac_compress.pipeline.inputs.splits import Split


@dataclass(frozen=True)
class TrainingSamples:
    """Samples of a split, changed at random as its ``augment`` says.

    Args:
        split: Has the samples.
        positions: Which of them; None for all.
    """

    split: Split
    positions: Tensor | None = None

    @property
    def digest(self) -> list[Any]:
        """Changes where the samples do."""
        positions = None if self.positions is None else self.positions.tolist()
        return [self.split.fingerprint, content_key({"positions": positions})]

    def __len__(self) -> int:
        return len(self.split if self.positions is None else self.positions)

    def part(self, count: int, generator: torch.Generator) -> "TrainingSamples":
        """Some of the samples, drawn at random; all where there are no more."""
        drawn = torch.randperm(len(self), generator=generator)[:count]
        return replace(self, positions=self.order[drawn])

    def first(self, count: int) -> Batch:
        """The first samples, as they are in the data."""
        return next(self.split.batches(count, indices=self.order[:count]))

    def try_changes(self) -> None:
        """Change a few samples at random as in training.

        Raises:
            InputError: If they are no images, or a transform of the user's fails.
        """
        generator = torch.Generator().manual_seed(0)
        next(self.split.batches(2, indices=self.order[:2], generator=generator, augment=True))

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """All samples once, in a random order and changed at random; the last batch may be smaller.

        Args:
            batch_size: Samples in a batch.
            generator: On the CPU. Draws the order and the changes.
        """
        return self.split.batches(
            batch_size, indices=self.order, shuffle=True, generator=generator, augment=True
        )

    @property
    def order(self) -> Tensor:
        """Positions of the samples in the split."""
        return torch.arange(len(self.split)) if self.positions is None else self.positions
