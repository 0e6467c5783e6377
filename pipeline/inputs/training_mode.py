"""The mode in which a model is trained."""

from torch import nn

from mfac_compress.mfac.batchnorm import freeze_batchnorm
from mfac_compress.pipeline.inputs.model_file import set_training


def train_mode(module: nn.Module) -> None:
    """Put a model into training mode; a batch norm that the factory froze keeps its statistics."""
    set_training(module, True)
    freeze_batchnorm(module)
