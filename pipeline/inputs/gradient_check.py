"""Whether the loss has a gradient, and in which of the matched tensors."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch

from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.gradients import GradientSource
from mfac_compress.mfac.labels import projection_loss, random_projections
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe, user_code
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.draw import step_generator
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.stages.calibrate import calibration_batches, calibration_loss

_GRADIENTS = 64
"""How many gradients are taken for a tensor that takes no part in the first ones."""
_VMAP_GRADIENTS = 2


def find_unused(context: RunContext) -> dict[str, str]:
    """Take a gradient as calibration does, in evaluation mode.

    Where nothing is calibrated, the gradient of random projections of the outputs stands for it.

    Returns:
        Name to reason, of the matched tensors that take no part.

    Raises:
        InputError: If there is no gradient, or not by the method that the recipe asks for.
    """
    calibrates = context.recipe.prune.method == "mfac"
    module = context.model.module
    loss = calibration_loss(context) if calibrates else projection_loss
    source = GradientSource(module, loss, context.parameters_of(module))
    try:
        with user_code():
            unused = source.unused(_batches(context, calibrates))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "The model and task.loss must be differentiable in the weights. The backward pass "
            f"raised {describe(error)}."
        ) from error
    if calibrates and context.recipe.calibrate.gradients == "vmap":
        _check_vmap(context, source)
    of = "loss" if calibrates else "outputs"
    if len(unused) == len(context.targets.matched):
        raise InputError(
            f"The {of} must depend on the tensors to prune. Got no gradient in any of "
            f"{', '.join(unused[:3])}. Take detach() and no_grad() out of the model and task.loss, "
            "or change prune.include."
        )
    return dict.fromkeys(unused, f"takes no part in the {of}")


def _batches(context: RunContext, calibrates: bool) -> Iterator[Batch]:
    """The first batches that calibration takes, or the like; the same in all processes."""
    module = context.model.module
    if calibrates:
        alone = replace(context, ranks=Ranks())
        each = context.recipe.calibrate.samples_per_gradient
        draw = (torch.arange(_GRADIENTS * each) % len(context.data.calibration)).view(-1, each)
        return calibration_batches(alone, module, draw, 0)
    positions = range(min(_GRADIENTS, len(context.data.calibration)))
    batches = context.data.calibration.batches(1, indices=positions)
    return random_projections(
        module,
        ((x.to(context.device), y) for x, y in batches),
        step_generator(context, step=0),
    )


def _check_vmap(context: RunContext, source: GradientSource) -> None:
    batches = itertools.islice(_batches(context, True), _VMAP_GRADIENTS)
    try:
        with user_code():
            list(source.rows(batches, "vmap"))
    except Exception as error:
        raise InputError(
            f"{context.recipe.where('calibrate.gradients')}: vmap must be able to run model and "
            f"loss. It raised {describe(error)}. Use auto or loop."
        ) from error
