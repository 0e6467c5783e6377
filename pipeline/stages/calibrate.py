"""Stage 1: the empirical Fisher's sums, from gradients of the loss on calibration samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mfac_compress.mfac.block_inverse import BlockFisher
from mfac_compress.mfac.gradients import NonFiniteGradientError, loss_gradients
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import uses_blocks
from mfac_compress.mfac.window import GradientWindow
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.data import Split
from mfac_compress.pipeline.inputs.model_file import set_training

VERSION = 1
_FILE = "fisher.safetensors"

Fisher = BlockFisher | GradientWindow


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the Fisher is made of. Not the damping: that comes in at inversion."""
    return {
        "model": context.model.fingerprint,
        "samples": context.data.calibration.fingerprint,
        "loss": context.task.loss_fingerprint,
        "draw": draws_on(context),
        "fisher": context.recipe.fisher.model_dump(exclude={"damping"}),
        "tensors": [target.name for target in context.targets.matched],
        "device": str(context.device),
    }


def draws_on(context: RunContext) -> dict[str, Any]:
    """What the choice of calibration samples depends on."""
    return context.recipe.calibrate.model_dump() | {"seed": context.seed}


def calibrate(context: RunContext, folder: Path) -> dict[str, Any]:
    """Compute the Fisher of the dense model and save it to ``folder``; returns facts."""
    fisher = compute_fisher(context, context.model.module, step=0)
    save_file(fisher.state(), folder / _FILE)
    return {"num_gradients": fisher.num_gradients}


def load_fisher(context: RunContext, folder: Path) -> Fisher:
    """Read back what :func:`calibrate` saved."""
    fisher = _empty_fisher(context)
    fisher.load_state(load_file(folder / _FILE, device=str(context.device)))
    return fisher


def compute_fisher(context: RunContext, module: nn.Module, step: int) -> Fisher:
    """Draw samples for this step and gather exactly m gradients of the model as it is.

    Raises:
        InputError: If the calibration split is too small, or a gradient is not finite.
    """
    section = context.recipe.calibrate
    draw = draw_samples(context, step)
    fisher = _empty_fisher(context)
    set_training(module, False)
    gradients = loss_gradients(
        module,
        context.task.loss,
        _batches(context, context.data.calibration, draw),
        context.parameters_of(module),
    )
    label = "calibrate" if not step else f"calibrate, step {step + 1}"
    try:
        for gradient in context.progress.track(gradients, label, section.num_gradients):
            fisher.add(gradient.unsqueeze(0))
    except NonFiniteGradientError as error:
        raise InputError(_name_samples(error, draw)) from error
    assert fisher.num_gradients == section.num_gradients
    return fisher


def draw_samples(context: RunContext, step: int) -> Tensor:
    """Positions in the calibration split of each gradient's samples. Shape ``[m, samples]``."""
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
    generator = torch.Generator().manual_seed(context.seed * 1000 + step)
    drawn = pool[torch.randperm(len(pool), generator=generator)[:needed]]
    return drawn.view(section.num_gradients, section.samples_per_gradient)


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


def _batches(context: RunContext, split: Split, draw: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in split.batches(draw.shape[1], indices=draw.flatten()):
        yield x.to(context.device), y.to(context.device)


def partition_of(context: RunContext) -> BlockPartition:
    """The Fisher's blocks for this recipe and model."""
    size, bounds = context.recipe.fisher.block_size, context.targets.bounds
    if size == "full":
        return BlockPartition.contiguous(bounds[-1][1], None)
    return BlockPartition.of_tensors(bounds, size)


def _empty_fisher(context: RunContext) -> Fisher:
    partition = partition_of(context)
    m = context.recipe.calibrate.num_gradients
    if uses_blocks(partition, m):
        return BlockFisher(partition, context.device)
    dtype = getattr(torch, context.recipe.fisher.window_dtype)
    return GradientWindow(m, partition, dtype, context.device)


def _name_samples(error: NonFiniteGradientError, draw: Tensor) -> str:
    samples = draw[error.index].tolist()
    return (
        f"Gradients must be finite. Got NaN or infinity in {error.tensor} for the calibration "
        f"samples {samples} (loss {error.loss:g}). Look at these samples in "
        "data.splits.calibration, and at task.loss."
    )
