"""Stage 3: remove weights by their saliency and let the others make up for them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfac_compress.mfac.block_inverse import BlockInverse
from mfac_compress.mfac.inverse import InverseFisher
from mfac_compress.mfac.layout import TensorLayout
from mfac_compress.mfac.obs import line_search, remove_weights
from mfac_compress.mfac.saliency import Budget, magnitude_saliency, obs_saliency, select_mask
from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.mfac.sequential import sequential_saliency
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.sharding import own_gradients, shards_of
from mfac_compress.pipeline.stages.calibrate import (
    Fisher,
    compute_fisher,
    load_fisher,
    load_method,
)
from mfac_compress.pipeline.stages.holdout_loss import holdout_loss
from mfac_compress.pipeline.stages.invert import invert
from mfac_compress.pipeline.weights import save_masks, save_weights


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the masks and weights depend on, beside the Fisher."""
    fisher = context.recipe.fisher
    return {
        "model": context.model.fingerprint,
        "prune": context.recipe.prune.model_dump(),
        "damping": [fisher.damping, fisher.damping_unit],
        "targets": [[t.name, t.sparsity, t.own_budget] for t in context.targets.matched],
    }


def prune(context: RunContext, calibrated: Path | None, folder: Path) -> dict[str, Any]:
    """Prune the model step by step; saves weights and masks to ``folder``, returns facts.

    Args:
        context: The run's.
        calibrated: Folder of the first step's Fisher; None where the method needs none.
        folder: Empty folder for the result.
    """
    pruner = Pruner(context)
    steps = []
    if calibrated is not None and context.recipe.prune.steps > 1:
        context.progress.plan((context.recipe.prune.steps - 1) * own_gradients(context))
    for step, budgets in enumerate(_steps(context)):
        if calibrated is None:
            pruner.remove_smallest(budgets)
            steps.append({"sparsity": pruner.sparsity})
        else:
            fisher = pruner.fisher(calibrated, step)
            steps.append(pruner.remove_least_salient(fisher, budgets, step))
    context.ranks.on_rank_zero(lambda: pruner.save(folder))
    return {"steps": steps}


def _steps(context: RunContext) -> Iterator[list[Budget]]:
    """Each step's budgets, on the way to the last sparsities."""
    section = context.recipe.prune
    last = context.targets.budgets()
    ways = [sparsity_schedule(b.sparsity, section.steps, section.schedule) for b in last]
    for sparsities in zip(*ways, strict=True):
        yield [replace(b, sparsity=s) for b, s in zip(last, sparsities, strict=True)]


class Pruner:
    """The model on its way, its weights of interest as a flat vector beside it.

    Each process has the whole of both, and the inverse on its own columns.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.module = context.fresh_module()
        self._parameters = context.parameters_of(self.module)
        self.layout = TensorLayout.of(self._parameters)
        self.weights = self.layout.flatten(self._parameters)
        self.mask = torch.ones_like(self.weights, dtype=torch.bool)

    @cached_property
    def own(self) -> slice:
        """This process' columns."""
        return shards_of(self.context)[self.context.ranks.rank].columns

    @property
    def sparsity(self) -> float:
        return 1 - self.mask.float().mean().item()

    def fisher(self, calibrated: Path, step: int) -> Fisher:
        """The Fisher at the present weights; the first step's comes from the cache."""
        if step == 0:
            return load_fisher(self.context, calibrated)
        method = self.context.ranks.on_rank_zero(lambda: load_method(calibrated))
        return compute_fisher(self.context, self.module, step, method)[0]

    def save(self, folder: Path) -> None:
        """Write weights and masks."""
        save_weights(self.module, folder)
        save_masks(self.layout.unflatten(self.mask), folder)

    def remove_smallest(self, budgets: list[Budget]) -> None:
        """One step by magnitude."""
        self.mask = select_mask(magnitude_saliency(self.weights), budgets, self.mask)
        self._set(remove_weights(self.weights, self.mask, None, "none"))

    def remove_least_salient(
        self, fisher: Fisher, budgets: list[Budget], step: int
    ) -> dict[str, Any]:
        """One step by curvature; returns facts."""
        section = self.context.recipe.prune
        ranks, own = self.context.ranks, self.own
        inverse = invert(self.context, fisher)
        # All select from the same saliencies, so their masks are the same.
        with ranks.raise_on_every_rank():
            own_saliency = self._saliency(inverse)
        self.mask = select_mask(ranks.all_gather(own_saliency), budgets, self.mask)
        updated = remove_weights(self.weights[own], self.mask[own], inverse, section.update)
        self._set(ranks.all_gather(updated))
        facts: dict[str, Any] = {"sparsity": self.sparsity, "damping": inverse.damping}
        if section.first_order:
            facts |= self._follow_gradient(fisher, inverse)
        self.context.progress.detail(f"step {step + 1}: sparsity {self.sparsity:.4f}")
        return facts

    def _saliency(self, inverse: InverseFisher) -> Tensor:
        """Of this process' columns."""
        own, selection = self.own, self.context.recipe.prune.selection
        has_blocks = isinstance(inverse, BlockInverse)
        if selection == "independent" or not has_blocks:
            return obs_saliency(self.weights[own], inverse)
        return sequential_saliency(self.weights[own], self.mask[own], inverse)

    def _follow_gradient(self, fisher: Fisher, inverse: InverseFisher) -> dict[str, Any]:
        ranks, own = self.context.ranks, self.own
        gradient = fisher.mean_gradient.to(self.weights)
        direction = -ranks.all_gather(inverse.solve_kept(gradient, self.mask[own]))
        weights = self.weights

        def loss_at(step_size: float) -> float:
            self._set(weights + step_size * direction)
            return holdout_loss(self.context, self.module)

        step_size, loss = ranks.on_rank_zero(lambda: line_search(loss_at))
        self._set(weights + step_size * direction)
        return {"step_size": step_size, "holdout_loss": loss}

    @torch.no_grad()
    def _set(self, weights: Tensor) -> None:
        """Take new weights, into the model too."""
        self.weights = weights
        values = self.layout.unflatten(weights)
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
