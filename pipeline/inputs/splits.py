"""One split of the data: samples by position, in batches as the model takes them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.dataset import Augmentation, Dataset, unchanged
from mfac_compress.pipeline.inputs.lengths import grouped_by_length
from mfac_compress.pipeline.inputs.scan import (
    Scan,
    check_unchanged,
    hashed_batches,
    pair_digests,
    scan,
)
from mfac_compress.pipeline.inputs.workers import read_in_order

_FIRST = 2


@dataclass(frozen=True)
class Split:
    """Samples for one purpose, addressed by their position 0..n-1.

    Attributes:
        name: ``calibration``, ``recovery`` or ``validation``.
        dataset: Where they come from.
        augment: Random changes for :meth:`batches` with ``augment=True``.
        scan: What reading all of them once has found.
        workers: Number of processes that read batches; 0 for this one.
    """

    name: str
    dataset: Dataset
    augment: ImageChanges
    scan: Scan
    workers: int = 0

    def __len__(self) -> int:
        return len(self.scan.digests)

    @property
    def fingerprint(self) -> str:
        """Changes where the split's samples, targets, preparation or augmentation do.

        Samples of the user's code may be drawn at random, which each process does for itself.
        """
        text = f"{self.scan.fingerprint} {self.augment.digest}"
        if self.workers and self.dataset.kind == "code":
            text += f" {self.workers}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def to_try(self) -> list[int]:
        """Positions of a few samples that tell whether all fit the model and the loss.

        The first two, and those with the smallest and the largest class number and whole-number
        input: what a loss or an embedding has no place for is among them.
        """
        first = range(min(_FIRST, len(self)))
        return list(dict.fromkeys([*first, *self.scan.extremes]))

    def describe(self, position: int) -> str:
        """Name a sample in a message, for example ``recovery sample 3 (row 10003 of a.npz)``.

        Args:
            position: In the split.
        Returns:
            The name.
        """
        return f"{self.name} sample {position} ({self.dataset.describe(position)})"

    def batches(
        self,
        batch_size: int,
        *,
        indices: Sequence[int] | Tensor | None = None,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        augment: bool = False,
    ) -> Iterator[Batch]:
        """Samples in batches; the last may be smaller.

        Args:
            batch_size: Samples in a batch.
            indices: Positions to take, in this order. Default: all.
            shuffle: Take them in a random order. Where the data pads, samples of similar length
                come together, and the batches are in random order.
            generator: On the CPU. Draws the order and the random changes.
            augment: Apply the recipe's random changes.
        Yields:
            Batches on the CPU, as the model and the loss take them. Where ``data.collate`` pads,
            their lengths differ.
        Raises:
            ValueError: If ``shuffle`` or ``augment`` comes without ``generator``.
            InputError: If a sample cannot be read, or has changed and must not.
        """
        if (shuffle or augment) and generator is None:
            raise ValueError("generator must be given for shuffle and augment. Got None.")
        order = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        if shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
            if self.dataset.lengths is not None:
                order = grouped_by_length(order, self.dataset.lengths, batch_size, generator)
        change = partial(self.augment, generator=generator)
        return self._batches(order, batch_size, change if augment else unchanged)

    def _batches(self, order: Tensor, batch_size: int, augment: Augmentation) -> Iterator[Batch]:
        positions = [part.tolist() for part in order.split(batch_size)]
        fixed = self.dataset.kind != "code"
        for inputs, targets in read_in_order(self.raw, positions, self.workers, fixed=fixed):
            yield Batch(self.dataset.prepare(inputs, augment), targets)

    def by_length(self, positions: Tensor) -> Tensor:
        """The same positions, the shortest samples first where the data pads."""
        lengths = self.dataset.lengths
        return positions if lengths is None else positions[lengths[positions].argsort(stable=True)]

    def raw(self, positions: Sequence[int]) -> Batch:
        """Samples as they are hashed: before augmentation and preparation.

        Raises:
            InputError: If a sample cannot be read, or has changed and must not.
        """
        samples = self.dataset.read(positions)
        batch = self.dataset.collate(samples)
        if _is_fixed(self.name, self.dataset):
            hashed = hashed_batches(self.dataset, samples) if self.dataset.alone else [batch]
            check_unchanged(pair_digests(hashed), self.scan.pairs, positions, self.dataset.describe)
        return batch


def open_split(name: str, dataset: Dataset, augment: ImageChanges, workers: int = 0) -> Split:
    """Read a data set once, and check that it can be used.

    Args:
        name: Of the split.
        dataset: Its samples.
        augment: Random changes for its batches.
        workers: Number of processes that read batches later on.
    Raises:
        InputError: If a sample cannot be read or is not finite, or if one changes from one reading
            to the next and must not.
    """
    return Split(name, dataset, augment, scan(dataset, fixed=_is_fixed(name, dataset)), workers)


def _is_fixed(name: str, dataset: Dataset) -> bool:
    """Whether samples could change, and must not.

    Those of the user's code may, but not in validation: the files that are compared must be given
    the same samples.
    """
    return dataset.kind == "storage" or (dataset.kind == "code" and name == "validation")
