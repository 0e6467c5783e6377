"""Remove weights by their saliency and let the others make up for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac_compress.mfac import pruning
from mfac_compress.mfac.fisher import Fisher
from mfac_compress.mfac.layout import Layout
from mfac_compress.mfac.units import Units
from mfac_compress.mfac.update import line_search
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.steps import units_removed
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.calibrate import FisherSource
from mfac_compress.pipeline.stages.divergence import Divergence
from mfac_compress.pipeline.stages.invert import Damping, invert


@dataclass(frozen=True)
class Removal:
    """How weights are removed by curvature: the recipe's choices.

    Args:
        damping: Of the Fisher.
        selection: Whether weights of a block are judged anew as others go; None for where possible.
        update: How the others make up for those that go.
        first_order: Whether the pruned model's gradient is followed.
    """

    damping: Damping
    selection: Literal["independent", "sequential"] | None
    update: Literal["joint", "single", "none"]
    first_order: bool

    @classmethod
    def of(cls, recipe: Recipe) -> "Removal":
        """A recipe's choices."""
        section, fisher = recipe.prune, recipe.fisher
        damping = Damping(fisher.damping, fisher.damping_unit)
        return cls(damping, section.selection, section.update, section.first_order)


@dataclass(frozen=True)
class Pruned:
    """What is known of one step.

    Args:
        sparsity: Reached over all pruned tensors.
        damping: λ; None by magnitude.
        step_size: How far the gradient was followed; None where it was not.
        divergence: From the dense model's outputs on held-out samples after it; by this the step
            size was chosen.
    """

    sparsity: float
    damping: float | None = None
    step_size: float | None = None
    divergence: float | None = None


def check(
    ranks: Ranks,
    *,
    calibration: CalibrationData,
    shape: FisherShape,
    removal: Removal,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check that there are samples for choices, and blocks for a selection one by one.

    Raises:
        InputError: If not.
    """
    with ranks.raise_on_every_rank():
        if removal.first_order and not len(calibration.draws.holdout):
            raise no_holdout(calibration, where)
        if removal.selection == "sequential" and not shape.uses_blocks:
            raise InputError(
                f"{where('prune.selection')}: sequential needs fisher.block_size below "
                f"calibrate.num_gradients. Got {shape.block_size} and {shape.num_gradients}. "
                "Lower the block size, or leave prune.selection out."
            )


def no_holdout(calibration: CalibrationData, where: Callable[..., str]) -> InputError:
    """Return the error for choices without samples to be made on."""
    return InputError(
        f"{where('calibrate.holdout')}: must leave at least one sample for the choices of "
        "prune.first_order, of recover.batchnorm and recover.lr auto, of recover.keep best and of "
        f"reconstruct. Got none of {calibration.draws.samples}. Raise it, or set them to false, "
        "never, a number, last and none."
    )


def prune_by_magnitude(
    job: Job, *, model: Model, layout: Layout, units: Units, shares: Sequence[float]
) -> Pruned:
    """Remove the smallest weights; the state goes to the job's folder.

    Args:
        job: Where, with whom, after the state before it.
        model: The dense model.
        layout: The weights that may go.
        units: Which of them go together.
        shares: Of their units that competitions have lost after it, by their final sparsity.
    """
    pruner = pruner_of(job, model, layout)
    pruned = pruner.remove_smallest(units, units_removed(units, shares))
    job.ranks.on_rank_zero(lambda: pruner.state().save(job.folder))
    return pruned


def prune(
    job: Job,
    *,
    model: Model,
    units: Units,
    step: int,
    shares: Sequence[float],
    calibration: CalibrationData,
    shape: FisherShape,
    removal: Removal,
    storage: Path | None,
) -> Pruned:
    """Remove weights by curvature; the state goes to the job's folder.

    Args:
        job: Where, with whom, after the dense model's Fisher and the state before it.
        model: The dense model.
        units: Which weights go together.
        step: Number of the step. All but 0 have gradients of their own, which nobody else needs.
        shares: Of their units that competitions have lost after it, by their final sparsity.
        calibration: Samples, draws and the loss.
        shape: Of the Fisher.
        removal: How weights are removed.
        storage: Folder for gradients that the memory does not hold; None for in memory.
    """
    pruner = pruner_of(job, model, shape.layout)
    source = FisherSource(calibration, shape, storage, job.ranks, job.progress)
    pruned = pruner.remove_least_salient(
        source.of_step(step, pruner.module, job.before["calibrated"]),
        units,
        units_removed(units, shares),
        removal,
        Divergence(model.module, calibration).of,
        job.ranks,
        source.columns,
    )
    of = f"from {shape.num_gradients:,} gradients"
    job.progress.detail(f"step {step + 1}: sparsity {pruned.sparsity:.4f}, {of}")
    job.ranks.on_rank_zero(lambda: pruner.state().save(job.folder))
    return pruned


def pruner_of(job: Job, model: Model, layout: Layout) -> "Pruner":
    """The model as the stage before left it; the dense one in the first step."""
    before = job.before.get("state")
    state = before and job.ranks.on_rank_zero(lambda: State.load(before.folder))
    return Pruner(model, layout, state)


class Pruner:
    """The model on its way, its weights of interest as a flat vector beside it.

    Each process has the whole of both, and the inverse on its own columns.

    Args:
        model: The dense model.
        layout: The weights that may go.
        state: Where to go on from. Default: the dense model.
    """

    def __init__(self, model: Model, layout: Layout, state: State | None = None) -> None:
        self.module = model.copy()
        if state is not None:
            state.into(self.module)
        self.layout = layout
        self.weights = layout.flatten(dict(self.module.named_parameters()))
        self.mask = torch.ones_like(self.weights, dtype=torch.bool)
        if state is not None:
            self.mask = self.layout.flatten(state.masks).to(self.weights.device)

    def state(self) -> State:
        """A copy of where it is."""
        return State.of(self.module, self.layout.unflatten(self.mask))

    def take(self, pruned: pruning.Pruned) -> Pruned:
        """Go on from a mask and weights; returns what is known of them."""
        self.mask = pruned.mask
        self._set(pruned.weights)
        return Pruned(pruned.sparsity)

    def remove_smallest(self, units: Units, removed: Tensor) -> Pruned:
        """One step by magnitude, until each competition has lost ``removed`` units."""
        pruned = pruning.prune_by_magnitude(self.weights, units, removed=removed, keep=self.mask)
        return self.take(pruned)

    def remove_least_salient(
        self,
        fisher: Fisher,
        units: Units,
        removed: Tensor,
        removal: Removal,
        divergence_of: Callable[[nn.Module], float],
        ranks: Ranks,
        own: slice,
    ) -> Pruned:
        """One step by curvature.

        Args:
            fisher: At the present weights, on this process' columns.
            units: Which weights go together.
            removed: How many units each competition has lost after it.
            removal: How weights are removed.
            divergence_of: Divergence from the dense model, to follow the gradient by.
            ranks: The processes that share the columns.
            own: This process' columns.
        """
        inverse = invert(fisher, removal.damping, ranks)
        pruned = pruning.prune(
            self.weights,
            inverse,
            units,
            removed=removed,
            keep=self.mask,
            selection=removal.selection,
            update=removal.update,
            columns=own,
            group=ranks,
        )
        self.take(pruned)
        if not removal.first_order:
            return Pruned(pruned.sparsity, inverse.damping)
        gradient = fisher.mean_gradient.to(self.weights)
        direction = -ranks.all_gather(inverse.solve_kept(gradient, self.mask[own]))
        step_size, divergence = self._follow(direction, divergence_of, ranks)
        return Pruned(pruned.sparsity, inverse.damping, step_size, divergence)

    def _follow(
        self, direction: Tensor, divergence_of: Callable[[nn.Module], float], ranks: Ranks
    ) -> tuple[float, float]:
        """Go as far as the divergence falls; returns how far, and the divergence there."""
        weights = self.weights

        def divergence_at(step_size: float) -> float:
            self._set(weights + step_size * direction)
            return divergence_of(self.module)

        step_size, divergence = ranks.on_rank_zero(lambda: line_search(divergence_at))
        self._set(weights + step_size * direction)
        return step_size, divergence

    @torch.no_grad()
    def _set(self, weights: Tensor) -> None:
        """Take new weights, into the model too."""
        self.weights = weights
        for name, values in self.layout.unflatten(weights).items():
            self.module.get_parameter(name).copy_(values)
