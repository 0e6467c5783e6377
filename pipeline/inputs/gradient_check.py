"""Whether the loss has a gradient, and in which of the matched tensors."""

import itertools
from collections.abc import Iterator

import torch
from torch import nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.gradients import GradientSource
from mfac_compress.mfac.labels import projection_loss, random_projections
from mfac_compress.mfac.layout import Layout
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.recipe.schema import Recipe

_GRADIENTS = 64
"""How many gradients are taken for a tensor that takes no part in the first ones."""
_VMAP_GRADIENTS = 2


def find_unused(
    recipe: Recipe,
    module: nn.Module,
    layout: Layout,
    calibration: CalibrationData,
) -> dict[str, str]:
    """Take a gradient as calibration does, in evaluation mode.

    Where nothing is calibrated, the gradient of random projections of the outputs stands for it.

    Args:
        recipe: Says whether, and how, gradients are taken.
        module: The model.
        layout: Its parameters that are to be pruned.
        calibration: Has the samples and the loss.

    Returns:
        Name to reason, of the matched tensors that take no part.

    Raises:
        InputError: If there is no gradient, or not by the method that the recipe asks for.
    """
    calibrates = recipe.prune.method == "mfac"
    batches = _batches if calibrates else _projected
    loss = calibration.loss if calibrates else projection_loss
    source = GradientSource(module, loss, layout)
    try:
        with user_code():
            unused = source.unused(batches(calibration, module))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "The model and task.loss must be differentiable in the weights. The backward pass "
            f"raised {describe(error)}."
        ) from error
    if calibrates and recipe.calibrate.gradients == "vmap":
        _check_vmap(recipe, source, calibration)
    of = "loss" if calibrates else "outputs"
    if len(unused) == len(layout.tensors):
        raise InputError(
            f"The {of} must depend on the tensors to prune. Got no gradient in any of "
            f"{', '.join(unused[:3])}. Take detach() and no_grad() out of the model and task.loss, "
            "or change prune.include."
        )
    return dict.fromkeys(unused, f"takes no part in the {of}")


def _batches(calibration: CalibrationData, module: nn.Module) -> Iterator[Batch]:
    """The first batches that calibration takes, or the like; the same in all processes."""
    each = calibration.draws.samples_per_gradient
    draw = (torch.arange(_GRADIENTS * each) % len(calibration.split)).view(-1, each)
    return calibration.gradient_batches(module, draw, step=0)


def _projected(calibration: CalibrationData, module: nn.Module) -> Iterator[Batch]:
    positions = range(min(_GRADIENTS, len(calibration.split)))
    batches = calibration.batches(1, positions)
    return random_projections(module, batches, calibration.draws.generator(step=0))


def _check_vmap(recipe: Recipe, source: GradientSource, calibration: CalibrationData) -> None:
    batches = itertools.islice(_batches(calibration, source.model), _VMAP_GRADIENTS)
    try:
        with user_code():
            list(source.rows(batches, "vmap"))
    except Exception as error:
        raise InputError(
            f"{recipe.where('calibrate.gradients')}: vmap must be able to run model and "
            f"loss. It raised {describe(error)}. Use auto or loop."
        ) from error
