"""Stage 1: the empirical Fisher's sums, from gradients of the loss on calibration samples."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from mfac_compress.mfac.process_group import SINGLE
from mfac_compress.mfac.window import GradientWindow
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.draw import draw_samples, sampling_key, step_generator
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.inputs.sharding import own_gradients, shards_of, uses_block_fisher

_METHOD = "method"
# Each exchange between processes takes a millisecond or two, so short rows travel together.
_SENT_BYTES = 1 << 26

Fisher = BlockFisher | GradientWindow


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the Fisher is made of. Not the damping: that comes in at inversion."""
    calibrate = context.recipe.calibrate
    return {
        "model": context.model.fingerprint,
        "samples": context.data.calibration.fingerprint,
        "loss": context.task.loss_name,
        "draw": sampling_key(context),
        "how": [calibrate.labels, calibrate.gradients],
        "fisher": context.recipe.fisher.model_dump(exclude={"damping", "damping_unit"}),
        "tensors": [target.name for target in context.targets.matched],
        "device": str(context.device),
        "processes": context.ranks.size,
    }


def calibrate(context: RunContext, folder: Path) -> dict[str, Any]:
    """Compute the Fisher of the dense model and save it to ``folder``; returns facts.

    Each process' columns make one file, so that none ever holds them all.
    """
    fisher, facts = compute_fisher(context, context.model.module, step=0)
    metadata = {_METHOD: facts["method"]}
    for number, part in enumerate(fisher.parts()):
        context.ranks.gather(
            part,
            lambda rank, own, number=number: save_file(own, folder / _file(rank, number), metadata),
        )
    return facts


def load_fisher(context: RunContext, folder: Path) -> Fisher:
    """Read back what :func:`calibrate` saved, this process' columns."""
    fisher = _empty_fisher(context)
    for number in range(context.ranks.on_rank_zero(lambda: len(list(folder.glob(_file(0, "*")))))):
        part = context.ranks.scatter(
            lambda rank, number=number: load_file(
                folder / _file(rank, number), device=str(context.device)
            )
        )
        fisher.add_part(part)
    return fisher


def load_method(folder: Path) -> Method:
    """How :func:`calibrate` computed the gradients; the steps after it do as it did."""
    with safe_open(folder / _file(0, 0), framework="pt") as file:
        return file.metadata()[_METHOD]


def compute_fisher(
    context: RunContext, module: nn.Module, step: int, method: Method | None = None
) -> tuple[Fisher, dict[str, Any]]:
    """Draw samples for this step and gather exactly m gradients of the model as it is.

    Of N processes each computes its N-th part of the gradients, and keeps its columns of all.

    Args:
        context: The run's.
        module: In the state that the gradients are wanted at.
        step: Number of the pruning step, which the draw depends on.
        method: How to compute the gradients; None to choose as the recipe says.

    Returns:
        The Fisher's sums on this process' columns, and facts: method and speed.

    Raises:
        InputError: If the calibration split is too small, a sample does not fit the loss, or a
            gradient is not finite.
    """
    draw = draw_samples(context, step)
    set_training(module, False)
    fisher = _empty_fisher(context)
    source = GradientSource(module, calibration_loss(context), context.parameters_of(module))
    batches = calibration_batches(context, module, draw, step)
    if method is None:
        method, batches = _choose_method(context, source, batches, draw)
    start = time.perf_counter()
    rows = source.rows(_with_progress(context, batches, step), method)
    for own_columns in _exchange_rows(context, rows, draw):
        fisher.add(own_columns)
    seconds = time.perf_counter() - start
    assert fisher.num_gradients == context.recipe.calibrate.num_gradients
    return fisher, {
        "num_gradients": fisher.num_gradients,
        "method": method,
        "samples_per_second": round(draw.numel() / seconds, 1),
    }


def _exchange_rows(context: RunContext, rows: Iterator[Tensor], draw: Tensor) -> Iterator[Tensor]:
    """Everyone's rows, this process' columns, until nobody has any more."""
    ranks = context.ranks
    columns = [shard.columns for shard in shards_of(context)]
    none = torch.empty(0, context.targets.weights, device=context.device)
    row_bytes = none.shape[1] * none.itemsize
    at_once = max(1, _SENT_BYTES // row_bytes) if ranks.size > 1 else 1
    while True:
        with ranks.raise_on_every_rank(), _naming_bad_samples(context, draw):
            parts = list(_taken(rows, at_once))
        own_rows = parts[0] if len(parts) == 1 else torch.cat([none, *parts])
        own_columns = ranks.all_to_all(own_rows, columns)
        if not len(own_columns):
            return
        yield own_columns


def _taken(parts: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The next parts that make up ``count`` rows; vmap gives many rows in one part."""
    taken = 0
    while taken < count and (part := next(parts, None)) is not None:
        taken += len(part)
        yield part


def _empty_fisher(context: RunContext) -> Fisher:
    """A Fisher of this process' columns.

    Raises:
        InputError: If there is no room on disk for gradients that the memory does not hold.
    """
    m, shard = context.recipe.calibrate.num_gradients, shards_of(context)[context.ranks.rank]
    if uses_block_fisher(context):
        return BlockFisher(shard.partition, context.device)
    dtype = getattr(torch, context.recipe.fisher.window_dtype)
    group = context.ranks if shard.coupled else SINGLE
    folder = context.window_folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return GradientWindow(m, shard.partition, dtype, context.device, folder, group)
    except ValueError as error:
        raise InputError(f"run.memory_budget is exceeded, and {error}") from error


def _file(rank: int, part: int | str) -> str:
    return f"fisher-{rank}-{part}.safetensors"


def calibration_loss(context: RunContext) -> Any:
    """The loss whose gradients are taken; the batches are checked as they are made."""
    if context.recipe.calibrate.labels == "model" and not _predicts_classes(context):
        return projection_loss
    return context.task.unchecked_loss


def _predicts_classes(context: RunContext) -> bool:
    return context.task.loss_name == "cross_entropy"


def calibration_batches(
    context: RunContext, module: nn.Module, draw: Tensor, step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch for each gradient of this process, with the targets that the recipe asks for.

    Args:
        context: The run's.
        module: The model, which draws targets where the recipe calibrates without labels.
        draw: Samples of each gradient of all processes. Shape ``[m, samples]``.
        step: Number of the pruning step.
    """
    split, own = context.data.calibration, context.ranks.shard(len(draw))
    batches = (
        (x.to(context.device), y.to(context.device))
        for x, y in split.batches(draw.shape[1], indices=draw[own].flatten())
    )
    if context.recipe.calibrate.labels is True:
        return _checked(context, module, batches)
    relabel = sampled_labels if _predicts_classes(context) else random_projections
    # A generator for each gradient: its targets must not depend on which process makes others.
    seeds = torch.randint(2**31, (len(draw),), generator=step_generator(context, step))[own]
    return itertools.chain.from_iterable(
        relabel(module, [batch], torch.Generator().manual_seed(seed))
        for batch, seed in zip(batches, seeds.tolist(), strict=True)
    )


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
    context: RunContext, source: GradientSource, batches: Iterator[Batch], draw: Tensor
) -> tuple[Method, Iterator[Batch]]:
    """The recipe's method, or the faster one on the first batches, which are given back.

    The first process measures for all.
    """
    section = context.recipe.calibrate
    if section.gradients != "auto":
        return section.gradients, batches
    with context.ranks.raise_on_every_rank():
        first = list(itertools.islice(batches, batches_at_once(section.samples_per_gradient)))

    def measured() -> Method:
        with _naming_bad_samples(context, draw):
            return fastest_method(source, first)

    return context.ranks.on_rank_zero(measured), itertools.chain(first, batches)


def _with_progress(context: RunContext, batches: Iterator[Batch], step: int) -> Iterator[Batch]:
    label = "calibrate" if not step else f"calibrate, step {step + 1}"
    return context.progress.track(batches, label, own_gradients(context))


@contextmanager
def _naming_bad_samples(context: RunContext, draw: Tensor) -> Iterator[None]:
    """Name the samples of a gradient that is not finite."""
    try:
        yield
    except NonFiniteGradientError as error:
        samples = draw[context.ranks.shard(len(draw))][error.index].tolist()
        raise InputError(
            f"Gradients must be finite. Got NaN or infinity in {error.tensor} for the calibration "
            f"samples {samples} (loss {error.loss:g}). Look at these samples in "
            "data.splits.calibration, and at task.loss."
        ) from error
