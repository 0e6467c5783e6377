"""Whether the model can be trained as it is used: one step's forward and backward pass."""

import torch

from mfac_compress.mfac.batch import Tree, call
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.forward import random_state_kept, run_model
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.training_mode import train_mode
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples
from mfac_compress.pipeline.quoting import type_and_shape
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.stages.mixing import Mixing
from mfac_compress.pipeline.stages.objective import Objective

_SAMPLES = 8
_OUT = (
    "Set recover.epochs: 0, or wrap the model in model.factory so that forward returns the same in "
    "both modes."
)


def check_training(
    model: Model,
    samples: TrainingSamples,
    objective: Objective,
    section: RecoverSection,
    device: torch.device,
    setting: str,
) -> None:
    """Run a copy of the model forward and backward in training mode.

    Args:
        model: The dense model.
        samples: What it is trained on.
        objective: What is made smaller.
        section: How it is trained.
        device: The model's.
        setting: Says that the recipe trains, for messages.

    Raises:
        InputError: If it fails, or returns something else than in evaluation mode (a head that
            exists in training only), or its inputs cannot be mixed as the recipe says.
    """
    count = min(_SAMPLES, section.batch_size, len(samples))
    with random_state_kept(device):
        mix = Mixing(section.mixup, section.cutmix)
        batch = mix(samples.first(count), torch.Generator().manual_seed(0)).to(device)
        expected = run_model(model.module, batch.inputs, device)
        module = model.copy()
        train_mode(module, dropout=section.uses_dropout, freeze_batchnorm=section.freeze_batchnorm)
        try:
            with user_code():
                outputs = call(module, batch.inputs)
        except Exception as error:
            raise InputError(
                f"The model must run in training mode, because {setting}. On {count} samples it "
                f"raised {describe(error)}. {_OUT}"
            ) from error
        _check_same_form(outputs, expected, setting)
        try:
            with user_code():
                objective.check(module, batch.inputs)
                computed = objective.compute(module, batch.inputs)
                objective.loss(computed, batch.targets).backward()
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                "The model and task.loss must be differentiable in training mode. The backward "
                f"pass raised {describe(error)}. Set recover.epochs: 0, or change what it names."
            ) from error


def _check_same_form(outputs: Tree, expected: Tree, setting: str) -> None:
    if type_and_shape(outputs) != type_and_shape(expected):
        raise InputError(
            "The model must return in training mode what it returns in evaluation mode, because "
            f"{setting}: {type_and_shape(expected)}. Got {type_and_shape(outputs)}. Is it an "
            f"auxiliary head? {_OUT}"
        )
