"""Batch norm in training mode whose batch is spread over several models.

PyTorch's own SyncBatchNorm runs on GPUs only. The sums over the batch are all that couples the
samples, and a sum over models is differentiable: its gradient is the sum of the gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Total = Callable[[Tensor], Tensor]


@contextmanager
def shared_batchnorm(model: nn.Module, total: Total) -> Iterator[None]:
    """Within the block, normalise by the statistics of all models' samples.

    Args:
        model: One of the replicas; all of them must run forward and backward passes alike.
        total: Sum of a tensor over the replicas, the same for all. May overwrite it.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_forward, norm, total)  # an attribute goes before the method
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, total: Total, x: Tensor) -> Tensor:
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, x)
    over = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = total(x.new_tensor([x.numel() / x.shape[1]])).item()
    mean = _Sum.apply(x.sum(dim=over), total) / count
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(dim=over), total) / count
    if norm.training and norm.running_mean is not None:
        _track(norm, mean.detach(), variance.detach() * count / (count - 1))
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    norm.num_batches_tracked += 1
    momentum = norm.momentum
    if momentum is None:  # PyTorch's cumulative average
        momentum = 1 / norm.num_batches_tracked.item()
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var), momentum)


class _Sum(torch.autograd.Function):
    """Sum over the replicas."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, total: Total) -> Tensor:
        ctx.total = total
        return total(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.total(gradient.clone()), None
