"""The mode in which a model is trained."""

from torch import nn

from mfac_compress.mfac import batchnorm
from mfac_compress.pipeline.inputs.model_file import set_training


def train_mode(module: nn.Module, *, freeze_batchnorm: bool = False) -> None:
    """Put a model into training mode.

    Args:
        module: Changed in place. A batch norm that the factory froze keeps its statistics.
        freeze_batchnorm: So does every other one.
    """
    set_training(module, True)
    batchnorm.freeze_batchnorm(module, every=freeze_batchnorm)
