"""Which calibration samples are used for what: gradients, and a part held out for choices."""

from typing import Any

import torch
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext


def sampling_key(context: RunContext) -> dict[str, Any]:
    """What the draws depend on, for cache keys."""
    keys = {"num_gradients", "samples_per_gradient", "holdout", "labels"}
    return context.recipe.calibrate.model_dump(include=keys) | {"seed": context.seed}


def draw_samples(context: RunContext, step: int) -> Tensor:
    """Positions in the calibration split of each gradient's samples. Shape ``[m, samples]``.

    Raises:
        InputError: If the split has too few of them.
    """
    section = context.recipe.calibrate
    pool = gradient_pool(context)
    needed = section.num_gradients * section.samples_per_gradient
    if needed > len(pool):
        raise InputError(
            "calibrate.num_gradients x calibrate.samples_per_gradient must not exceed the "
            f"{len(pool)} calibration samples left beside calibrate.holdout. Got "
            f"{section.num_gradients} x {section.samples_per_gradient} = {needed}. Lower one of "
            "them, or give data.splits.calibration more samples."
        )
    generator = step_generator(context, step)
    drawn = pool[torch.randperm(len(pool), generator=generator)[:needed]]
    return drawn.view(section.num_gradients, section.samples_per_gradient)


def step_generator(context: RunContext, step: int) -> torch.Generator:
    """Random numbers of one pruning step, on the CPU."""
    return torch.Generator().manual_seed(context.seed * 1000 + step)


def gradient_pool(context: RunContext) -> Tensor:
    """Calibration samples that gradients may be drawn from."""
    return _shuffled(context)[_holdout_size(context) :]


def holdout(context: RunContext) -> Tensor:
    """Calibration samples that no gradient sees, for choices."""
    return _shuffled(context)[: _holdout_size(context)]


def _shuffled(context: RunContext) -> Tensor:
    generator = torch.Generator().manual_seed(context.seed)
    return torch.randperm(len(context.data.calibration), generator=generator)


def _holdout_size(context: RunContext) -> int:
    return round(context.recipe.calibrate.holdout * len(context.data.calibration))
