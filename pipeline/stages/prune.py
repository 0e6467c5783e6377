"""Stage 3: remove weights by their saliency and let the others make up for them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfac_compress.mfac import InverseFisher
from mfac_compress.mfac.layout import TensorLayout
from mfac_compress.mfac.obs import remove_weights
from mfac_compress.mfac.saliency import Budget, magnitude_saliency, obs_saliency, select_mask
from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.stages.calibrate import compute_fisher, load_fisher
from mfac_compress.pipeline.stages.invert import invert
from mfac_compress.pipeline.weights import save_masks, save_weights

VERSION = 1


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the masks and weights depend on, beside the Fisher."""
    return {
        "model": context.model.fingerprint,
        "prune": context.recipe.prune.model_dump(),
        "damping": context.recipe.fisher.damping,
        "targets": [[t.name, t.sparsity, t.own_budget] for t in context.targets.matched],
    }


def prune(context: RunContext, calibrated: Path | None, folder: Path) -> dict[str, Any]:
    """Prune the model step by step; saves weights and masks to ``folder``, returns facts.

    Args:
        context: The run's.
        calibrated: Folder of the first step's Fisher; None where the method needs none.
        folder: Empty folder for the result.
    """
    module = context.fresh_module()
    parameters = context.parameters_of(module)
    layout = TensorLayout.of(parameters)
    weights = layout.flatten(parameters)
    mask = torch.ones_like(weights, dtype=torch.bool)
    sparsities = []
    for step, budgets in enumerate(_steps(context)):
        inverse = _inverse(context, module, calibrated, step)
        saliency = (
            magnitude_saliency(weights) if inverse is None else obs_saliency(weights, inverse)
        )
        mask = select_mask(saliency, budgets, mask)
        weights = remove_weights(weights, mask, inverse, context.recipe.prune.update)
        _write(parameters, layout.unflatten(weights))
        sparsities.append(1 - mask.float().mean().item())
    save_weights(module, folder)
    save_masks(layout.unflatten(mask), folder)
    return {"sparsity_by_step": sparsities}


def _steps(context: RunContext) -> Iterator[list[Budget]]:
    """Each step's budgets, on the way to the last sparsities."""
    section = context.recipe.prune
    last = context.targets.budgets()
    ways = [sparsity_schedule(b.sparsity, section.steps, section.schedule) for b in last]
    for sparsities in zip(*ways, strict=True):
        yield [replace(b, sparsity=s) for b, s in zip(last, sparsities, strict=True)]


def _inverse(
    context: RunContext, module: nn.Module, calibrated: Path | None, step: int
) -> InverseFisher | None:
    """The inverse at this step's weights; the first step's gradients come from the cache."""
    if calibrated is None:
        return None
    fisher = load_fisher(context, calibrated) if not step else compute_fisher(context, module, step)
    label = f"invert, step {step + 1}"
    for _ in context.progress.track([None], label, total=1):
        inverse = invert(context.recipe.fisher, fisher)
    return inverse


def _saliency(weights: Tensor, inverse: InverseFisher | None) -> Tensor:
    return magnitude_saliency(weights) if inverse is None else obs_saliency(weights, inverse)


@torch.no_grad()
def _write(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
