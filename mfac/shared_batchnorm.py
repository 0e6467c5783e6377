"""Batch norm in training mode over a batch that is split among several replicas of a model.

PyTorch's own SyncBatchNorm runs on GPUs only. The samples are coupled only by sums over the batch,
and a sum over replicas is differentiable: its gradient is the sum of the gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

AllReduce = Callable[[Tensor], Tensor]


@contextmanager
def shared_batchnorm(model: nn.Module, all_reduce: AllReduce) -> Iterator[None]:
    """Within the ``with`` block, normalise by the statistics of all replicas' samples.

    Args:
        model: One of the replicas; all must run the same forward and backward passes.
        all_reduce: Sums a tensor over the replicas, with the same result on each. May overwrite it.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_forward, norm, all_reduce)  # an attribute goes before the method
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, all_reduce: AllReduce, x: Tensor) -> Tensor:
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, x)
    kind, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 counts to 256
    over = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = all_reduce(x.new_tensor([x.numel() / x.shape[1]])).item()
    mean = _Sum.apply(x.sum(dim=over), all_reduce) / count
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(dim=over), all_reduce) / count
    if norm.training and norm.running_mean is not None:
        _track(norm, mean.detach(), variance.detach() * count / (count - 1))
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(kind)


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
    def forward(ctx: Any, x: Tensor, all_reduce: AllReduce) -> Tensor:
        ctx.all_reduce = all_reduce
        return all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.all_reduce(gradient.clone()), None
