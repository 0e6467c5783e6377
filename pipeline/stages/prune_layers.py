"""Remove weights by the error of their layer's output, from the inputs that each layer gets.

No gradients and no labels, unless the Fisher says how many weights each tensor loses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfac_compress.mfac import layerwise, pruning
from mfac_compress.mfac.layout import Layout
from mfac_compress.mfac.numerics import PrecisionError
from mfac_compress.mfac.units import Units
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.memory import MemoryBudget, readable_bytes
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.inputs.model_layers import ModelLayers
from mfac_compress.pipeline.inputs.steps import units_removed
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.stages import prune as by_curvature_stage
from mfac_compress.pipeline.stages.calibrate import FisherSource
from mfac_compress.pipeline.stages.invert import invert
from mfac_compress.pipeline.stages.prune import Pruned, Pruner, pruner_of
from mfac_compress.pipeline.stages.reconstruct import check_samples

_BATCH = 100
_TRIED = 2  # samples


@dataclass(frozen=True)
class Removal:
    """How weights are removed by layers: the recipe's choices.

    Args:
        samples: Number of calibration samples.
        positions: Random positions of each sample; None for all.
        ridge: What is added to the inputs' second moments.
        relative: Whether errors count relative to their layer's output.
        update: Whether the others make up for those that go.
    """

    samples: int
    positions: int | None
    ridge: float
    relative: bool
    update: bool

    @classmethod
    def of(cls, recipe: Recipe) -> "Removal":
        """A recipe's choices."""
        section, inputs = recipe.prune, recipe.prune.layerwise
        return cls(
            samples=inputs.samples,
            positions=None if inputs.positions == "all" else inputs.positions,
            ridge=inputs.ridge,
            relative=section.allocation == "errors",
            update=section.update == "joint",
        )


def check(
    ranks: Ranks,
    *,
    layers: ModelLayers,
    layout: Layout,
    calibration: CalibrationData,
    removal: Removal,
    shape: FisherShape | None,
    by_curvature: by_curvature_stage.Removal | None,
    budget: MemoryBudget,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check that there are samples, memory, and blocks for a selection one by one.

    Raises:
        InputError: If not.
    """
    with ranks.raise_on_every_rank():
        check_samples(calibration, removal.samples, where("prune.layerwise.samples"))
        if ranks.is_rank_zero:
            _check_memory(layers, layout, calibration, removal.samples, budget, where)
    if by_curvature is not None:
        by_curvature_stage.check(
            ranks, calibration=calibration, shape=shape, removal=by_curvature, where=where
        )


def _check_memory(
    layers: ModelLayers,
    layout: Layout,
    calibration: CalibrationData,
    samples: int,
    budget: MemoryBudget,
    where: Callable[..., str],
) -> None:
    """Check that the moments of all layers' inputs fit into memory."""
    names = [tensor.name for tensor in layout]
    inputs = next(iter(calibration.drawn_inputs("check", _TRIED, _TRIED)))
    needed = layerwise.bytes_of_pruning(
        layers.graph, layers.model.module, names, inputs, min(samples, _BATCH)
    )
    if needed > budget.bytes:
        raise InputError(
            f"{where('prune.method')}: layerwise must hold the second moments of all layers' "
            f"inputs, {readable_bytes(needed)} of {len(names)} layers. Got {budget}. Leave the "
            "widest layers out (prune.exclude), set it to mfac or magnitude, or raise "
            "run.memory_budget where there is more."
        )


def prune(
    job: Job,
    *,
    model: Model,
    layers: ModelLayers,
    layout: Layout,
    units: Units,
    step: int,
    shares: Sequence[float],
    calibration: CalibrationData,
    removal: Removal,
    shape: FisherShape | None,
    by_curvature: by_curvature_stage.Removal | None,
    storage: Path | None,
) -> Pruned:
    """Remove weights layer by layer; the state goes to the job's folder.

    The first process computes, the others share the gradients, where there are such.

    Args:
        job: Where, with whom, after the state before it and, with ``by_curvature``, the dense
            model's Fisher.
        model: The dense model.
        layers: Its layers.
        layout: The weights that may go.
        units: Which of them go together.
        step: Number of the step.
        shares: Of their units that competitions have lost after it, by their final sparsity.
        calibration: Samples and draws.
        removal: How weights are removed.
        shape: Of the Fisher, where there is one.
        by_curvature: How the Fisher chooses, of whose choice only the number of each tensor's units
            counts; None where there is no Fisher.
        storage: Folder for gradients that the memory does not hold; None for in memory.
    """
    pruner, removed = pruner_of(job, model, layout), units_removed(units, shares)
    if by_curvature is not None:
        source = FisherSource(calibration, shape, storage, job.ranks, job.progress)
        chosen = _chosen_by_curvature(job, pruner, source, units, removed, step, by_curvature)
        units, removed = _of_each_tensor(chosen, layout, units)

    def work() -> Pruned:
        pruned = _prune(job, pruner, layers, units, removed, calibration, removal, step)
        facts = pruner.take(pruned)
        pruner.state().save(job.folder)
        return facts

    try:
        facts = job.ranks.on_rank_zero(work)
    except PrecisionError as error:
        raise InputError(f"prune.layerwise.{error}") from error
    job.progress.detail(f"step {step + 1}: sparsity {facts.sparsity:.4f}")
    return facts


def _prune(
    job: Job,
    pruner: Pruner,
    layers: ModelLayers,
    units: Units,
    removed: Tensor,
    calibration: CalibrationData,
    removal: Removal,
    step: int,
) -> pruning.Pruned:
    names = [tensor.name for tensor in pruner.layout]
    draw = f"prune, step {step}"
    batches = calibration.drawn_inputs(f"{draw}, inputs", removal.samples, _BATCH)
    batches = job.progress.track(batches, "inputs of layers", len(batches))
    set_training(pruner.module, False)
    moments = layerwise.layer_moments(
        layers.graph,
        pruner.module,
        names,
        batches,
        positions=removal.positions,
        generator=calibration.draws.generator_for(f"{draw}, positions"),
    )
    return layerwise.prune_layers(
        pruner.weights,
        pruner.layout,
        units,
        layers.graph.layers,
        moments,
        removed=removed,
        keep=pruner.mask,
        relative=removal.relative,
        update=removal.update,
        ridge=removal.ridge,
    )


def _chosen_by_curvature(
    job: Job,
    pruner: Pruner,
    source: FisherSource,
    units: Units,
    removed: Tensor,
    step: int,
    removal: by_curvature_stage.Removal,
) -> Tensor:
    """The mask that the Fisher would choose, in all processes. Shape ``[d]``."""
    fisher = source.of_step(step, pruner.module, job.before["calibrated"])
    pruned = pruning.prune(
        pruner.weights,
        invert(fisher, removal.damping, job.ranks),
        units,
        removed=removed,
        keep=pruner.mask,
        selection=removal.selection,
        update="none",
        columns=source.columns,
        group=job.ranks,
    )
    return pruned.mask


def _of_each_tensor(mask: Tensor, layout: Layout, units: Units) -> tuple[Units, Tensor]:
    """Units that compete within their tensor only, and how many of them a mask has removed."""
    size = layout.size // units.count
    counts = torch.tensor([tensor.size // size for tensor in layout])
    lost = [int((~mask[start:stop]).sum()) // size for start, stop in layout.bounds]
    competition = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
    removed = torch.tensor(lost)
    return Units(units.of_weight, competition, removed.double() / counts), removed
