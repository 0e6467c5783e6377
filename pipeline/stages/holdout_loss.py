"""The loss on held-out calibration samples, by which stages make their choices.

Where the recipe calibrates without labels it is the distance from the dense model's outputs.
"""

import torch
from torch import nn
from torch.nn.functional import mse_loss

from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.draw import holdout
from mfac_compress.pipeline.inputs.model_file import set_training

_BATCH = 256


@torch.no_grad()
def holdout_loss(context: RunContext, module: nn.Module) -> float:
    """Mean loss on the calibration samples that no gradient has seen, in evaluation mode."""
    set_training(module, False)
    labelled = context.recipe.calibrate.labels is True
    held, total = holdout(context), 0.0
    for x, y in context.data.calibration.batches(_BATCH, indices=held):
        inputs = x.to(context.device)
        outputs = module(inputs)
        if labelled:
            loss = context.task.loss(outputs, y.to(context.device))
        else:
            loss = mse_loss(outputs, context.model.module(inputs))
        total += loss.item() * len(x)
    return total / len(held)
