"""Remove weights by their saliency and let the others make up for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac_compress.mfac.block_inverse import BlockInverse
from mfac_compress.mfac.inverse import InverseFisher
from mfac_compress.mfac.layout import TensorLayout
from mfac_compress.mfac.obs import line_search, remove_weights
from mfac_compress.mfac.saliency import Budget, magnitude_saliency, obs_saliency, select_mask
from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.mfac.sequential import sequential_saliency
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.model_file import LoadedModel
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import PruneSection, Recipe
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.stages.calibrate import Fisher, FisherSource
from mfac_compress.pipeline.stages.holdout_loss import holdout_loss
from mfac_compress.pipeline.stages.invert import Damping, invert
from mfac_compress.pipeline.weights import save_masks, save_weights


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
class PrunedStep:
    """What is known of one step.

    Args:
        sparsity: Reached over all pruned tensors.
        damping: λ; None by magnitude.
        step_size: How far the gradient was followed; None where it was not.
        holdout_loss: Loss on held-out samples after it.
    """

    sparsity: float
    damping: float | None = None
    step_size: float | None = None
    holdout_loss: float | None = None


@dataclass(frozen=True)
class Pruned:
    """What the stage says of its steps."""

    steps: tuple[PrunedStep, ...]


def steps_of(budgets: Sequence[Budget], section: PruneSection) -> list[list[Budget]]:
    """Each step's budgets, on the way to the last ones."""
    ways = [sparsity_schedule(b.sparsity, section.steps, section.schedule) for b in budgets]
    return [
        [replace(b, sparsity=s) for b, s in zip(budgets, sparsities, strict=True)]
        for sparsities in zip(*ways, strict=True)
    ]


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
        "prune.first_order and recover.batchnorm auto. Got none of "
        f"{calibration.draws.samples}. Raise it, or set them to false and never."
    )


def prune_by_magnitude(
    job: Job, *, model: LoadedModel, names: Sequence[str], steps: Sequence[Sequence[Budget]]
) -> Pruned:
    """Remove the smallest weights step by step; weights and masks go to the job's folder.

    Args:
        job: Where, with whom.
        model: The dense model.
        names: The tensors to prune.
        steps: Budgets of each step.
    """
    pruner = Pruner(model, names)
    facts = [pruner.remove_smallest(budgets) for budgets in steps]
    job.ranks.on_rank_zero(lambda: pruner.save(job.folder))
    return Pruned(tuple(facts))


def prune(
    job: Job,
    *,
    model: LoadedModel,
    steps: Sequence[Sequence[Budget]],
    calibration: CalibrationData,
    shape: FisherShape,
    removal: Removal,
    storage: Path | None,
) -> Pruned:
    """Remove weights by curvature step by step; weights and masks go to the job's folder.

    Args:
        job: Where, with whom, after the stage ``calibrate``.
        model: The dense model.
        steps: Budgets of each step.
        calibration: Samples, draws and the loss.
        shape: Of the Fisher.
        removal: How weights are removed.
        storage: Folder for gradients that the memory does not hold; None for in memory.
    """
    calibrated = job.before["calibrate"]
    source = FisherSource(calibration, shape, storage, job.ranks, job.progress)
    pruner, facts = Pruner(model, shape.names), []
    if len(steps) > 1:
        job.progress.plan((len(steps) - 1) * source.own_gradients)
    own = shape.shards(job.ranks.size)[job.ranks.rank].columns
    for step, budgets in enumerate(steps):
        if step == 0:
            fisher = source.load(calibrated.folder)
        else:
            fisher, _ = source.compute(pruner.module, step, calibrated.facts.method)
        facts.append(
            pruner.remove_least_salient(
                fisher,
                budgets,
                removal,
                lambda module: holdout_loss(module, model.module, calibration),
                job.ranks,
                own,
            )
        )
        job.progress.detail(f"step {step + 1}: sparsity {facts[-1].sparsity:.4f}")
    job.ranks.on_rank_zero(lambda: pruner.save(job.folder))
    return Pruned(tuple(facts))


class Pruner:
    """The model on its way, its weights of interest as a flat vector beside it.

    Each process has the whole of both, and the inverse on its own columns.

    Args:
        model: The dense model.
        names: The tensors to prune, in the order of the flat vector.
    """

    def __init__(self, model: LoadedModel, names: Sequence[str]) -> None:
        self.module = model.copy()
        parameters = dict(self.module.named_parameters())
        self._parameters = {name: parameters[name] for name in names}
        self.layout = TensorLayout.of(self._parameters)
        self.weights = self.layout.flatten(self._parameters)
        self.mask = torch.ones_like(self.weights, dtype=torch.bool)

    @property
    def sparsity(self) -> float:
        return 1 - self.mask.float().mean().item()

    def save(self, folder: Path) -> None:
        """Write weights and masks."""
        save_weights(self.module, folder)
        save_masks(self.layout.unflatten(self.mask), folder)

    def remove_smallest(self, budgets: Sequence[Budget]) -> PrunedStep:
        """One step by magnitude."""
        self.mask = select_mask(magnitude_saliency(self.weights), budgets, self.mask)
        self._set(remove_weights(self.weights, self.mask, None, "none"))
        return PrunedStep(self.sparsity)

    def remove_least_salient(
        self,
        fisher: Fisher,
        budgets: Sequence[Budget],
        removal: Removal,
        loss_of: Callable[[nn.Module], float],
        ranks: Ranks,
        own: slice,
    ) -> PrunedStep:
        """One step by curvature.

        Args:
            fisher: At the present weights, on this process' columns.
            budgets: Who competes with whom, and how many stay.
            removal: How weights are removed.
            loss_of: Loss on held-out samples, to follow the gradient by.
            ranks: The processes that share the columns.
            own: This process' columns.
        """
        inverse = invert(fisher, removal.damping, ranks)
        # All select from the same saliencies, so their masks are the same.
        with ranks.raise_on_every_rank():
            own_saliency = self._saliency(inverse, removal.selection, own)
        self.mask = select_mask(ranks.all_gather(own_saliency), budgets, self.mask)
        updated = remove_weights(self.weights[own], self.mask[own], inverse, removal.update)
        self._set(ranks.all_gather(updated))
        if not removal.first_order:
            return PrunedStep(self.sparsity, inverse.damping)
        gradient = fisher.mean_gradient.to(self.weights)
        direction = -ranks.all_gather(inverse.solve_kept(gradient, self.mask[own]))
        step_size, loss = self._follow(direction, loss_of, ranks)
        return PrunedStep(self.sparsity, inverse.damping, step_size, loss)

    def _saliency(self, inverse: InverseFisher, selection: str | None, own: slice) -> Tensor:
        """Of this process' columns."""
        if selection == "independent" or not isinstance(inverse, BlockInverse):
            return obs_saliency(self.weights[own], inverse)
        return sequential_saliency(self.weights[own], self.mask[own], inverse)

    def _follow(
        self, direction: Tensor, loss_of: Callable[[nn.Module], float], ranks: Ranks
    ) -> tuple[float, float]:
        """Go as far as the loss falls; returns how far, and the loss there."""
        weights = self.weights

        def loss_at(step_size: float) -> float:
            self._set(weights + step_size * direction)
            return loss_of(self.module)

        step_size, loss = ranks.on_rank_zero(lambda: line_search(loss_at))
        self._set(weights + step_size * direction)
        return step_size, loss

    @torch.no_grad()
    def _set(self, weights: Tensor) -> None:
        """Take new weights, into the model too."""
        self.weights = weights
        values = self.layout.unflatten(weights)
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
