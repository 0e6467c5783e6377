"""The mode in which a model is trained."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mfac_compress.mfac.batchnorm import freeze_batchnorm
from mfac_compress.pipeline.inputs.model_file import set_training


def train_mode(module: nn.Module, *, dropout: bool = True) -> None:
    """Put a model into training mode; a batch norm that the factory froze keeps its statistics.

    Args:
        module: Changed in place.
        dropout: False for evaluation mode of all but layers with running statistics, and of
            recurrent ones, which cuDNN does not differentiate in that mode.
    """
    set_training(module, dropout)
    if not dropout:
        for part in module.modules():
            if isinstance(part, (_NormBase, nn.RNNBase)):
                part.train()
    freeze_batchnorm(module)
