"""Batch-norm statistics after the weights have changed: re-estimated where that helps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.batchnorm import batchnorm_state, has_batchnorm, reestimate_batchnorm
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.stages.divergence import Divergence, is_nearer, reported
from mfac_compress.pipeline.weights import restore

_BATCH = 256
_MOST_SAMPLES = 5000  # far more than a mean and a variance of a channel need


@dataclass(frozen=True)
class Batchnorm:
    """What became of batch-norm statistics."""

    reestimated: bool
    """Whether they were replaced by those of calibration samples."""
    divergence: tuple[float | None, float | None] | None = None
    """From the dense model's outputs before and after, by which that was chosen. null: it was
    not; for one of both: outputs were not finite."""


def recalibrate_batchnorm(
    module: nn.Module,
    divergence: Divergence,
    choice: Literal["auto", "always", "never"],
    augment: ImageChanges,
) -> Batchnorm:
    """Re-estimate batch-norm statistics if the recipe says so, or if it helps.

    On images changed as in training: statistics of images as they are belong to another
    distribution, with which even the dense model is worse. It hurts at low sparsity and is worth
    much at high: `auto` compares the outputs with the dense model's on calibration samples that
    neither gradients nor statistics have seen.

    Args:
        module: The model, which is changed.
        divergence: From the dense model; has the samples.
        choice: The recipe's.
        augment: Random changes of the images.
    """
    if choice == "never" or not has_batchnorm(module):
        return Batchnorm(reestimated=False)
    calibration, before = divergence.calibration, batchnorm_state(module)
    divergence_before = divergence.of(module) if choice == "auto" else None
    batches = augmented(calibration, augment, calibration.draws.pool[:_MOST_SAMPLES])
    reestimate_batchnorm(module, (batch.inputs for batch in batches))
    if divergence_before is None:
        return Batchnorm(reestimated=True)
    divergence_after = divergence.of(module)
    better = is_nearer(divergence_after, divergence_before)
    if not better:
        restore(module, {**module.state_dict(), **before})
    return Batchnorm(better, (reported(divergence_before), reported(divergence_after)))


def augmented(
    calibration: CalibrationData, augment: ImageChanges, positions: Tensor
) -> Iterator[Batch]:
    """Batches for the statistics, changed as in training."""
    generator = calibration.draws.generator_for("batchnorm")
    return calibration.augmented(augment, _BATCH, positions, generator)
