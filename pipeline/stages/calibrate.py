"""Stage 1: the empirical Fisher's sums, from gradients of the loss on calibration samples."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mfac_compress.mfac.block_inverse import BlockFisher
from mfac_compress.mfac.gradients import (
    Batch,
    GradientSource,
    Method,
    NonFiniteGradientError,
    batches_at_once,
    fastest_method,
)
from mfac_compress.mfac.labels import projection_loss, random_projections, sampled_labels
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import uses_blocks
from mfac_compress.mfac.window import GradientWindow
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.draw import draw_samples, draws_on, step_generator
from mfac_compress.pipeline.inputs.model_file import set_training

VERSION = 2
_FILE, _METHOD = "fisher.safetensors", "method"

Fisher = BlockFisher | GradientWindow


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the Fisher is made of. Not the damping: that comes in at inversion."""
    calibrate = context.recipe.calibrate
    return {
        "model": context.model.fingerprint,
        "samples": context.data.calibration.fingerprint,
        "loss": context.task.loss_fingerprint,
        "draw": draws_on(context),
        "how": [calibrate.labels, calibrate.gradients],
        "fisher": context.recipe.fisher.model_dump(exclude={"damping", "damping_unit"}),
        "tensors": [target.name for target in context.targets.matched],
        "device": str(context.device),
    }


def calibrate(context: RunContext, folder: Path) -> dict[str, Any]:
    """Compute the Fisher of the dense model and save it to ``folder``; returns facts."""
    fisher, facts = compute_fisher(context, context.model.module, step=0)
    save_file(fisher.state(), folder / _FILE, metadata={_METHOD: facts["method"]})
    return facts


def load_fisher(context: RunContext, folder: Path) -> Fisher:
    """Read back what :func:`calibrate` saved."""
    fisher = _empty_fisher(context)
    fisher.load_state(load_file(folder / _FILE, device=str(context.device)))
    return fisher


def load_method(folder: Path) -> Method:
    """How :func:`calibrate` computed the gradients; the steps after it do as it did."""
    with safe_open(folder / _FILE, framework="pt") as file:
        return file.metadata()[_METHOD]


def compute_fisher(
    context: RunContext, module: nn.Module, step: int, method: Method | None = None
) -> tuple[Fisher, dict[str, Any]]:
    """Draw samples for this step and gather exactly m gradients of the model as it is.

    Args:
        context: The run's.
        module: In the state that the gradients are wanted at.
        step: Number of the pruning step, which the draw depends on.
        method: How to compute the gradients; None to choose as the recipe says.

    Returns:
        The Fisher's sums, and facts: method and speed.

    Raises:
        InputError: If the calibration split is too small, a sample does not fit the loss, or a
            gradient is not finite.
    """
    draw = draw_samples(context, step)
    set_training(module, False)
    fisher = _empty_fisher(context)
    source = GradientSource(module, _loss(context), context.parameters_of(module))
    batches = _batches(context, module, draw, step)
    try:
        if method is None:
            method, batches = _choose_method(context, source, batches)
        start = time.perf_counter()
        for rows in source.rows(_ticking(context, batches, step), method):
            fisher.add(rows)
    except NonFiniteGradientError as error:
        raise InputError(_name_samples(error, draw)) from error
    seconds = time.perf_counter() - start
    assert fisher.num_gradients == context.recipe.calibrate.num_gradients
    return fisher, {
        "num_gradients": fisher.num_gradients,
        "method": method,
        "samples_per_second": round(draw.numel() / seconds, 1),
    }


def partition_of(context: RunContext) -> BlockPartition:
    """The Fisher's blocks for this recipe and model."""
    section, targets = context.recipe.fisher, context.targets
    if section.block_size == "full":
        return BlockPartition.contiguous(targets.weights, None)
    if section.blocks == "row":
        return BlockPartition.of_rows([t.shape for t in targets.matched], section.block_size)
    return BlockPartition.of_tensors(targets.bounds, section.block_size)


def _empty_fisher(context: RunContext) -> Fisher:
    partition = partition_of(context)
    m = context.recipe.calibrate.num_gradients
    if uses_blocks(partition, m):
        return BlockFisher(partition, context.device)
    dtype = getattr(torch, context.recipe.fisher.window_dtype)
    return GradientWindow(m, partition, dtype, context.device)


def _loss(context: RunContext) -> Any:
    """The loss whose gradients are taken; the batches are checked as they are made."""
    if context.recipe.calibrate.labels == "model" and not _predicts_classes(context):
        return projection_loss
    return context.task.unchecked_loss


def _predicts_classes(context: RunContext) -> bool:
    return context.task.loss_name == "cross_entropy"


def _batches(
    context: RunContext, module: nn.Module, draw: Tensor, step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch for each gradient, with the targets that the recipe asks for."""
    split = context.data.calibration
    batches = (
        (x.to(context.device), y.to(context.device))
        for x, y in split.batches(draw.shape[1], indices=draw.flatten())
    )
    if context.recipe.calibrate.labels is True:
        return _checked(context, module, batches)
    relabel = sampled_labels if _predicts_classes(context) else random_projections
    return relabel(module, batches, step_generator(context, step))


def _checked(
    context: RunContext, module: nn.Module, batches: Iterator[Batch]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Check that each batch's targets fit the loss; the outputs' form is that of the first."""
    form = None
    for x, y in batches:
        if form is None:
            with torch.no_grad():
                form = module(x)
        context.task.check(form, y)
        yield x, y


def _choose_method(
    context: RunContext, source: GradientSource, batches: Iterator[Batch]
) -> tuple[Method, Iterator[Batch]]:
    """The recipe's method, or the faster one on the first batches, which are given back."""
    section = context.recipe.calibrate
    if section.gradients != "auto":
        return section.gradients, batches
    some = min(batches_at_once(section.samples_per_gradient), section.num_gradients)
    first = list(itertools.islice(batches, some))
    return fastest_method(source, first), itertools.chain(first, batches)


def _ticking(context: RunContext, batches: Iterator[Batch], step: int) -> Iterator[Batch]:
    label = "calibrate" if not step else f"calibrate, step {step + 1}"
    return context.progress.track(batches, label, context.recipe.calibrate.num_gradients)


def _name_samples(error: NonFiniteGradientError, draw: Tensor) -> str:
    samples = draw[error.index].tolist()
    return (
        f"Gradients must be finite. Got NaN or infinity in {error.tensor} for the calibration "
        f"samples {samples} (loss {error.loss:g}). Look at these samples in "
        "data.splits.calibration, and at task.loss."
    )
