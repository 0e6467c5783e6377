"""Batch-norm statistics after the weights have changed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfac_compress.mfac.batch import Tree, call


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model has running batch-norm statistics that are not frozen."""
    return bool(_batchnorms(model))


def freeze_batchnorm(model: nn.Module, *, every: bool = False) -> None:
    """Put batch norms into evaluation mode, so that training keeps their statistics.

    Args:
        model: Changed in place.
        every: All of them. Otherwise those alone that are frozen: that have a scale or shift of
            which neither requires a gradient.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and (every or _is_frozen(module)):
            module.eval()


def batchnorm_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy the running statistics, for :meth:`nn.Module.load_state_dict` (not strict)."""
    kept = {
        f"{name}.{kind}" if name else kind
        for name in _batchnorms(model)
        for kind in ("running_mean", "running_var", "num_batches_tracked")
    }
    return {name: value.clone() for name, value in model.state_dict().items() if name in kept}


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tree]) -> None:
    """Replace the running statistics by the plain average over the batches.

    Every other layer stays in evaluation mode, and so does a frozen batch norm. The model is left
    in evaluation mode, even if a batch raises an error.

    Args:
        model: Changed in place.
        batches: Inputs; the larger the batches, the more accurate the variance.
    """
    model.eval()
    norms = _batchnorms(model).values()
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's cumulative average
            norm.train()
        for inputs in batches:
            call(model, inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def _batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
        and not _is_frozen(module)
    }


def _is_frozen(norm: _BatchNorm) -> bool:
    parameters = list(norm.parameters(recurse=False))
    return bool(parameters) and not any(p.requires_grad for p in parameters)
