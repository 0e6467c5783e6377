"""Which damping and block size suit a model: a few are tried on a few gradients, in one step."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfac_compress.mfac import BlockPartition, prune
from mfac_compress.mfac.fisher import fisher_of
from mfac_compress.mfac.gradients import GradientSource
from mfac_compress.mfac.numerics import PrecisionError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.stages.divergence import Divergence
from mfac_compress.pipeline.stages.invert import Damping, invert

MOST_GRADIENTS = 128
SETTINGS = (
    (128, 1e-3),
    (64, 1e-3),
    (128, 1e-2),
    (128, 1e-4),
    (64, 1e-2),
    (64, 1e-4),
    (128, 1e-1),
    (128, 1e-5),
)
"""Block sizes, and dampings in units of the mean diagonal of the undamped Fisher, in the order in
which they are tried while there is time."""


@dataclass(frozen=True)
class Tried:
    """What one setting gives.

    Args:
        block_size: Side of the Fisher's blocks.
        damping: In units of the mean of its diagonal.
        divergence: Of the pruned model's outputs from the dense model's, on held-out samples.
    """

    block_size: int
    damping: float
    divergence: float


def probe_bytes(targets: PruneTargets) -> int:
    """Memory that the gradients of a probe take, with a copy of them."""
    return 2 * 4 * MOST_GRADIENTS * targets.weights


def probe(
    model: Model,
    targets: PruneTargets,
    calibration: CalibrationData,
    num_gradients: int,
    seconds: float,
) -> list[Tried]:
    """Prune the model in one step with each setting, by the methods that a run has by default.

    Args:
        model: The dense model, which is not changed.
        targets: What to prune, and how much of it.
        calibration: Has the samples, their draws and the loss.
        num_gradients: Those of the recipe, of which at most ``MOST_GRADIENTS`` are used.
        seconds: After which no other setting is begun.

    Returns:
        The settings that were tried and could be computed, the best one first.
    """
    start, module, layout = time.monotonic(), model.copy(), targets.layout
    draw = calibration.draws.gradients(0, num_gradients)[:MOST_GRADIENTS]
    source = GradientSource(module, calibration.loss, layout)
    gradients = torch.cat(list(source.rows(calibration.gradient_batches(module, draw, 0))))
    weights = layout.flatten(dict(module.named_parameters()))
    divergence, tried = Divergence(model.module, calibration), []
    for block_size, damping in SETTINGS:
        if time.monotonic() - start > seconds:
            break
        blocks = BlockPartition.of_tensors(layout.bounds, block_size)
        try:
            inverse = invert(
                fisher_of(gradients, blocks), Damping(damping, "mean_diagonal"), Ranks()
            )
        except PrecisionError:
            continue
        pruned = prune(weights, inverse, targets.units).weights
        found = divergence.of(_with(module, targets, pruned))
        tried.append(Tried(block_size, damping, found))
    return sorted(tried, key=lambda one: one.divergence)


@torch.no_grad()
def _with(module: nn.Module, targets: PruneTargets, weights: Tensor) -> nn.Module:
    for name, values in targets.layout.unflatten(weights).items():
        module.get_parameter(name).copy_(values)
    return module
