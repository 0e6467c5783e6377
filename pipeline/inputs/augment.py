"""What is done to samples: random changes in training, and bringing them to the model's scale."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mfac_compress.mfac.batch import Tree
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.transforms import Transforms
from mfac_compress.pipeline.quoting import type_and_shape
from mfac_compress.pipeline.recipe.schema import Augment


@dataclass(frozen=True, eq=False)
class ImageChanges:
    """The random changes of samples that a recipe asks for.

    Args:
        section: The recipe's ``data.augment``.
        transforms: What its ``transforms`` are; None for none.
    """

    section: Augment = field(default_factory=Augment)
    transforms: Transforms | None = None

    @property
    def digest(self) -> str:
        """What the recipe says. What functions consist of is in the run's code."""
        return self.section.model_dump_json()

    def __call__(self, x: Tree, generator: torch.Generator | None) -> Tree:
        """Change a batch of raw samples.

        Args:
            x: Images ``[n, channels, height, width]``, or what a transform of the user's takes.
            generator: On the CPU. Draws the changes.
        Returns:
            Samples of the same shape and type.
        Raises:
            InputError: If ``x`` does not fit the changes, or a transform of the user's fails.
        """
        x = random_crop_flip(x, augment=self.section, generator=generator)
        return x if self.transforms is None else self.transforms(x, generator)


def random_crop_flip(x: Tree, *, augment: Augment, generator: torch.Generator | None) -> Tree:
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
    if not isinstance(x, Tensor) or x.ndim != 4:
        raise InputError(
            "data.augment needs batches of images, [n, channels, height, width]. "
            f"Got {type_and_shape(x)}. Set data.layout or remove data.augment."
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
