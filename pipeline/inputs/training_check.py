"""Whether the model can be trained as it is used: one step's forward and backward pass."""

import torch
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe, user_code
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.forward import run_model
from mfac_compress.pipeline.stages.training_mode import train_mode

_SAMPLES = 8
_OUT = (
    "Set recover.epochs: 0, or wrap the model in model.factory so that forward returns the same in "
    "both modes."
)


def check_training(context: RunContext) -> None:
    """Run a copy of the model forward and backward in training mode, where the recipe trains.

    Raises:
        InputError: If it fails, or returns something else than in evaluation mode (a head that
            exists in training only).
    """
    section, split = context.recipe.recover, context.data.recovery
    if not section.epochs:
        return
    count = min(_SAMPLES, section.batch_size, len(split))
    x, y = next(split.batches(count, indices=torch.arange(count)))
    expected = run_model(context, context.model.module, x)
    module = context.fresh_module()
    train_mode(module)
    try:
        with user_code():
            outputs = module(x.to(context.device))
    except Exception as error:
        raise InputError(
            f"The model must run in training mode, because {context.recipe.where('recover.epochs')}"
            f" is {section.epochs}. On {count} samples it raised {describe(error)}. {_OUT}"
        ) from error
    _check_same_form(context, outputs, expected)
    try:
        with user_code():
            loss = context.task.loss(
                outputs, y.to(context.device), label_smoothing=section.label_smoothing
            )
            loss.backward()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "The model and task.loss must be differentiable in training mode. The backward pass "
            f"raised {describe(error)}. Set recover.epochs: 0, or change what it names."
        ) from error


def _check_same_form(context: RunContext, outputs: object, expected: Tensor) -> None:
    same = isinstance(outputs, Tensor) and outputs.shape == expected.shape
    if not same:
        raise InputError(
            "The model must return in training mode what it returns in evaluation mode, because "
            f"{context.recipe.where('recover.epochs')} is {context.recipe.recover.epochs}: one "
            f"tensor {list(expected.shape)}. Got {_form(outputs)}. Is it an auxiliary head? {_OUT}"
        )


def _form(outputs: object) -> str:
    if isinstance(outputs, Tensor):
        return f"a tensor {list(outputs.shape)}"
    return f"a {type(outputs).__name__}"
