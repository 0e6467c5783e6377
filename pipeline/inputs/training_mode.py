"""The mode in which a model is trained."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mfac_compress.mfac import batchnorm
from mfac_compress.pipeline.inputs.model_file import set_training


def train_mode(module: nn.Module, *, dropout: bool = True, freeze_batchnorm: bool = False) -> None:
    """Put a model into training mode.

    Args:
        module: Changed in place. A batch norm that the factory froze keeps its statistics.
        dropout: False for evaluation mode of all but layers with running statistics, and of
            recurrent ones, which cuDNN does not differentiate in that mode.
        freeze_batchnorm: Every other batch norm keeps its statistics, too.
    """
    set_training(module, dropout)
    if not dropout:
        for part in module.modules():
            if isinstance(part, (_NormBase, nn.RNNBase)):
                part.train()
    batchnorm.freeze_batchnorm(module, every=freeze_batchnorm)
