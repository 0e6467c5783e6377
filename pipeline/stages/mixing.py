"""Mixed samples, on which the dense model teaches more than on those that it was trained on.

It is sure of these: its outputs are almost their labels. Of mixtures it is not. Both models get the
same mixtures, so there are no labels to mix.

References:
    Zhang et al. (2018), mixup: beyond empirical risk minimization.
    Yun et al. (2019), CutMix: regularization strategy to train strong classifiers with
    localizable features.
    Beyer et al. (2022), Knowledge distillation: a good teacher is patient and consistent.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch, Tree, map_tensors, named_tensors
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.quoting import type_and_shape


@dataclass(frozen=True)
class Mixing:
    """Mixes each sample of a batch with another one of the batch, all at the same share.

    Args:
        mixup: α of mixup; None for none.
        cutmix: α of CutMix; None for none. With both, each batch is mixed by one of them, drawn
            at random.
    """

    mixup: float | None = None
    cutmix: float | None = None

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Mix the inputs of a batch; the result has no targets.

        Args:
            batch: On the CPU.
            generator: On the CPU. Draws partners, shares and boxes.

        Raises:
            InputError: If the inputs cannot be mixed.
        """
        kinds = [kind for kind in (self.mixup, self.cutmix) if kind is not None]
        if not kinds:
            return batch
        # Both, whichever is drawn: else a run could fail in the middle.
        if self.mixup is not None:
            _check_floats(batch.inputs)
        if self.cutmix is not None:
            _check_images(batch.inputs)
        # Of NumPy, since PyTorch draws no Beta numbers from a generator that it is given.
        numbers = np.random.default_rng(torch.randint(2**62, (), generator=generator).item())
        partners = torch.randperm(batch.size, generator=generator)
        cuts = self.cutmix is not None and (self.mixup is None or numbers.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share = numbers.beta(alpha, alpha)
        if cuts:
            return Batch(_pasted(batch.inputs, partners, share, numbers), ())
        return Batch(_blended(batch.inputs, partners, share), ())


def _check_floats(inputs: Tree) -> None:
    if not all(tensor.is_floating_point() for _, tensor in named_tensors(inputs)):
        raise InputError(
            f"recover.mixup needs inputs of floats. Got {type_and_shape(inputs)}. Leave it out."
        )


def _check_images(inputs: Tree) -> None:
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        raise InputError(
            "recover.cutmix needs batches of images, [n, channels, height, width]. "
            f"Got {type_and_shape(inputs)}. Leave it out, or take recover.mixup."
        )


def _blended(inputs: Tree, partners: Tensor, share: float) -> Tree:
    """Mixup: the share of each sample, and the rest of its partner."""
    return map_tensors(lambda x: torch.lerp(x[partners], x, share), inputs)


def _pasted(inputs: Tree, partners: Tensor, share: float, numbers: np.random.Generator) -> Tree:
    """CutMix: a box of each image, 1 - share of its area, is that of its partner.

    The box's centre is anywhere in the image, which may cut the box off.
    """
    rows, columns = (_span(size, share, numbers) for size in inputs.shape[2:])
    mixed = inputs.clone()
    mixed[:, :, rows, columns] = inputs[partners][:, :, rows, columns]
    return mixed


def _span(size: int, share: float, numbers: np.random.Generator) -> slice:
    """Where the box lies along one side of the image."""
    length, centre = round(size * math.sqrt(1 - share)), int(numbers.integers(size))
    start = centre - length // 2
    return slice(max(start, 0), min(start + length, size))
