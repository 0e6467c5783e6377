"""One split of the data: samples by position, in batches as the model takes them.

Layout: ``x`` is ``[n, ...]`` (images ``[n, channels, height, width]``), float32, or int64 where the
data holds numbers of things (tokens); ``y`` is ``[n, ...]``, int64 for classes, float32 otherwise.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.schema import Augment

_FIRST = 2


class Extremes:
    """Finds the samples that hold the smallest and the largest of whole numbers."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, numbers: np.ndarray, start: int) -> None:
        """Look at some more samples. Floats are passed over.

        Args:
            numbers: Inputs or targets, one of the two. Shape ``[n, ...]``.
            start: Position of the first.
        """
        if numbers.dtype.kind not in "iu" or not numbers.size:
            return
        flat = numbers.reshape(len(numbers), -1)
        low, high = flat.min(1), flat.max(1)
        self._keep("low", -int(low.min()), start + int(low.argmin()))
        self._keep("high", int(high.max()), start + int(high.argmax()))

    def _keep(self, which: str, value: int, position: int) -> None:
        if which not in self._found or value > self._found[which][0]:
            self._found[which] = value, position

    @property
    def positions(self) -> list[int]:
        """Where they are; none where no whole numbers were seen."""
        return [position for _, position in self._found.values()]


def sample_digests(x: np.ndarray) -> list[bytes]:
    """Hash each sample; equal where the numbers are.

    Args:
        x: Of one type throughout a split. Shape ``[n, ...]``.
    """
    if x.dtype.kind == "f":
        x = x + x.dtype.type(0)  # -0.0 becomes 0.0
    return [hashlib.sha256(sample).digest() for sample in np.ascontiguousarray(x)]


def check_unchanged(
    found: Sequence[bytes],
    expected: Sequence[bytes],
    positions: Sequence[int],
    describe: Callable[[int], str],
) -> None:
    """Refuse samples that are not what they were when the run began.

    Args:
        found: Hashes of the samples read now.
        expected: Those of the whole split, read at first.
        positions: Of the samples read now.
        describe: Names the sample at a position.
    Raises:
        InputError: If one has changed.
    """
    for digest, position in zip(found, positions, strict=True):
        if digest != expected[position]:
            raise InputError(
                "data must stay the same while it is used. Another reading gave something else for "
                f"{describe(position)}. Take random changes out of the data set, or wait until "
                "nothing writes to its files."
            )


class Samples(Protocol):
    """Where a split's samples come from."""

    digests: Sequence[bytes]
    """Hash of each sample's input before augmentation: equal where the content is."""
    fingerprint: str
    """Hash of all inputs, targets, and what is done to them."""
    extremes: Sequence[int]
    """Positions of the samples with the smallest and largest class and whole-number input."""
    stable: bool
    """Whether they were the same at a second reading; otherwise overlaps cannot be seen."""

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Raw samples, `x` before :meth:`normalise`."""
        ...

    def normalise(self, x: Tensor) -> Tensor:
        """What the model sees of raw inputs, float32."""
        ...

    def describe(self, position: int) -> str:
        """Where a sample comes from, for messages."""
        ...


@dataclass(frozen=True)
class Split:
    """Samples for one purpose, addressed by their position 0..n-1.

    Attributes:
        name: ``calibration``, ``recovery`` or ``validation``.
        samples: Where they come from.
        augment: Random changes for :meth:`batches` with ``augment=True``.
    """

    name: str
    samples: Samples
    augment: Augment

    def __len__(self) -> int:
        return len(self.samples.digests)

    @property
    def fingerprint(self) -> str:
        """Changes where the split's samples, targets, preparation or augmentation do."""
        text = f"{self.samples.fingerprint} {self.augment.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def to_try(self) -> list[int]:
        """Positions of a few samples that tell whether all fit the model and the loss.

        The first two, and those with the smallest and the largest class number and whole-number
        input: what a loss or an embedding has no place for is among them.
        """
        first = range(min(_FIRST, len(self)))
        return list(dict.fromkeys([*first, *self.samples.extremes]))

    def describe(self, position: int) -> str:
        """Name a sample in a message, for example ``recovery sample 3 (row 10003 of a.npz)``.

        Args:
            position: In the split.
        Returns:
            The name.
        """
        return f"{self.name} sample {position} ({self.samples.describe(position)})"

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
            shuffle: Take them in a random order.
            generator: On the CPU. Draws the order and the random changes.
            augment: Apply the recipe's random changes.
        Yields:
            Inputs and targets on the CPU, as the model and the loss take them.
        Raises:
            ValueError: If ``shuffle`` or ``augment`` comes without ``generator``.
            InputError: If a sample cannot be read.
        """
        if (shuffle or augment) and generator is None:
            raise ValueError("generator must be given for shuffle and augment. Got None.")
        order = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        if shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
        change = partial(random_crop_flip, augment=self.augment, generator=generator)
        return self._fetch(order, batch_size, change if augment else None)

    def _fetch(
        self, order: Tensor, batch_size: int, change: Callable[[Tensor], Tensor] | None
    ) -> Iterator[Batch]:
        for positions in order.split(batch_size):
            x, y = self.samples.fetch(positions.tolist())
            yield Batch(self.samples.normalise(x if change is None else change(x)), y)


def as_target(y: Tensor) -> Tensor:
    """Give targets the type that losses take.

    Args:
        y: Any real type.
    Returns:
        float32 for floats, int64 for the rest (class numbers).
    """
    return y.float() if y.is_floating_point() else y.long()


def random_crop_flip(x: Tensor, *, augment: Augment, generator: torch.Generator | None) -> Tensor:
    """Shift each image by up to ``crop`` pixels and mirror half of them.

    It works on raw pixels, so the border that a shift uncovers is black (0 before mean and std
    are taken off), as in the usual CIFAR recipe.

    Args:
        x: Raw images. Shape ``[n, channels, height, width]``.
        augment: How far, and whether to mirror.
        generator: Draws the shifts and the mirrored ones.
    Returns:
        Images of the same shape and type.
    Raises:
        InputError: If ``x`` are not images.
    """
    if not (augment.crop or augment.flip):
        return x
    if x.ndim != 4:
        raise InputError(
            "data.augment needs images of shape [channels, height, width]. "
            f"Got samples of shape {list(x.shape[1:])}. Set data.layout or remove data.augment."
        )
    count, _, height, width = x.shape
    pad = augment.crop
    shifts = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.arange(width)
    if augment.flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def channelwise(x: Tensor, divide_by: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Take ``(x / divide_by - mean) / std``.

    Args:
        x: Raw inputs. Shape ``[n, channels, ...]``.
        divide_by: One number for all.
        mean: Empty (0), one number, or one per channel.
        std: Empty (1), one number, or one per channel.
    Returns:
        float32, of the shape of ``x``.
    """
    shape = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
    x = x.float() / divide_by
    if mean:
        x = x - torch.tensor(mean).view(shape)
    if std:
        x = x / torch.tensor(std).view(shape)
    return x


def check_channels(key: str, values: Sequence[float], shape: Sequence[int]) -> None:
    """Refuse a mean or std that does not fit the samples.

    Args:
        key: The recipe key, for the message.
        values: Its value.
        shape: Of one sample, channels first.
    Raises:
        InputError: If there are neither none, nor one, nor one per channel.
    """
    channels = shape[0] if shape else 1
    if len(values) not in (0, 1, channels):
        raise InputError(
            f"{key} must have one number, or one per channel ({channels}, of samples "
            f"{list(shape)}). Got {len(values)}. Set data.layout if the channels come last."
        )
