"""The calibration split as gradients and choices use it."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Batch, Tree, call
from mfac_compress.mfac.labels import projection_loss, random_projections, sampled_labels
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.draw import Draws
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.inputs.task import Task
from mfac_compress.pipeline.quoting import type_and_shape

_EVERYTHING = slice(None)


@dataclass(frozen=True)
class CalibrationData:
    """Samples, the draws from them, and the loss whose gradients are taken of them.

    Args:
        split: The samples.
        draws: Which of them are for gradients, and which for choices.
        task: Has the loss.
        labels: True for the data's own targets, ``model`` for such that the model draws.
        device: Where batches are put.
    """

    split: Split
    draws: Draws
    task: Task
    labels: Literal[True, "model"]
    device: torch.device

    @property
    def digest(self) -> list[Any]:
        """Changes where batches or losses may."""
        draws = asdict(self.draws)
        return [self.split.fingerprint, draws, self.task.loss_name, self.labels, str(self.device)]

    @property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """The loss whose gradients are taken; batches are checked as they are made."""
        return self.task.unchecked_loss if self._keeps_classes else projection_loss

    @property
    def _keeps_classes(self) -> bool:
        return self.labels is True or self.predicts_classes

    @property
    def predicts_classes(self) -> bool:
        """Whether the outputs are logits of classes."""
        return self.task.loss_name == "cross_entropy"

    def batches(self, batch_size: int, positions: Iterable[int] | Tensor) -> Iterator[Batch]:
        """Samples as they are in the data, on the device."""
        drawn = self.split.batches(batch_size, indices=positions)
        return (batch.to(self.device) for batch in drawn)

    def drawn_inputs(
        self, purpose: str, samples: int, batch_size: int, augment: ImageChanges | None = None
    ) -> "DrawnInputs":
        """Inputs of samples that are not held out, drawn at random, the same for one purpose.

        Args:
            purpose: Names the draw.
            samples: How many.
            batch_size: Samples in a batch.
            augment: Random changes; None for none.
        """
        pool, generator = self.draws.pool, self.draws.generator_for(purpose)
        drawn = pool[torch.randperm(len(pool), generator=generator)[:samples]]
        return DrawnInputs(self, drawn, batch_size, generator, augment or ImageChanges())

    def augmented(
        self,
        augment: ImageChanges,
        batch_size: int,
        positions: Tensor,
        generator: torch.Generator,
        *,
        shuffle: bool = False,
    ) -> Iterator[Batch]:
        """Samples changed at random as in training, on the device.

        Args:
            augment: The recipe's random changes.
            batch_size: Samples in a batch.
            positions: Which samples, in this order.
            generator: Draws the changes, and the order, on the CPU.
            shuffle: Take them in a random order.
        """
        split = replace(self.split, augment=augment)
        drawn = split.batches(
            batch_size, indices=positions, shuffle=shuffle, generator=generator, augment=True
        )
        return (batch.to(self.device) for batch in drawn)

    def gradient_batches(
        self, module: nn.Module, draw: Tensor, step: int, own: slice = _EVERYTHING
    ) -> Iterator[Batch]:
        """One batch for each gradient, with the targets that the recipe asks for.

        Args:
            module: The model, which draws targets where the recipe calibrates without labels.
            draw: Samples of each gradient of all processes. Shape ``[m, samples]``.
            step: Number of the pruning step.
            own: Which of the gradients this process computes.
        """
        batches = self.batches(draw.shape[1], draw[own].flatten())
        if self.labels is True:
            return self._checked(module, batches)
        relabel = sampled_labels if self.predicts_classes else random_projections
        # A generator for each gradient: its targets must not depend on which process makes others.
        seeds = torch.randint(2**31, (len(draw),), generator=self.draws.generator(step))[own]
        return itertools.chain.from_iterable(
            relabel(module, [batch], torch.Generator().manual_seed(seed))
            for batch, seed in zip(batches, seeds.tolist(), strict=True)
        )

    def _checked(self, module: nn.Module, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Check that each batch's targets fit the loss. Inputs of one form give outputs of one."""
        outputs: dict[str, Tree] = {}
        for batch in batches:
            form = type_and_shape(batch.inputs)
            if form not in outputs:
                with torch.no_grad():
                    outputs[form] = call(module, batch.inputs)
            self.task.check(outputs[form], batch.targets)
            yield batch


@dataclass(frozen=True)
class DrawnInputs:
    """Batches of inputs, read anew in each pass, and each time in another order.

    Args:
        calibration: Has the samples.
        positions: Of the samples.
        batch_size: Samples in a batch.
        generator: Draws the orders and the changes.
        augment: Random changes.
    """

    calibration: CalibrationData
    positions: Tensor
    batch_size: int
    generator: torch.Generator
    augment: ImageChanges

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.positions) / self.batch_size)

    def __iter__(self) -> Iterator[Tree]:
        batches = self.calibration.augmented(
            self.augment, self.batch_size, self.positions, self.generator, shuffle=True
        )
        return (batch.inputs for batch in batches)
