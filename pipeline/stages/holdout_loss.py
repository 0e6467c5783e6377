"""The loss on held-out calibration samples, by which stages make their choices.

Where the recipe calibrates without labels it is the distance from the dense model's outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from mfac_compress.mfac.batch import Tree, call, map_tensors, named_tensors
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.model_file import set_training

_BATCH = 256


@torch.no_grad()
def holdout_loss(module: nn.Module, dense: nn.Module, calibration: CalibrationData) -> float:
    """Mean loss on the calibration samples that no gradient has seen, in evaluation mode.

    Args:
        module: The model that is judged.
        dense: The dense model.
        calibration: Has the samples and the loss.
    """
    set_training(module, False)
    held, total = calibration.draws.holdout, 0.0
    for batch in calibration.batches(_BATCH, held):
        outputs = call(module, batch.inputs)
        if calibration.labels is True:
            loss = calibration.task.loss(outputs, batch.targets)
        else:
            loss = _distance(outputs, call(dense, batch.inputs))
        total += loss.item() * batch.size
    return total / len(held)


def _distance(outputs: Tree, others: Tree) -> Tensor:
    """Mean squared difference, summed over the outputs."""
    parts = map_tensors(mse_loss, outputs, others)
    return torch.stack([part for _, part in named_tensors(parts)]).sum()
