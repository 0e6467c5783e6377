"""The gradient of a batch whose samples several processes share.

Each process runs the model on its share. The loss is taken of everyone's outputs, so it may be any
function of them, and the gradients of the shares add up to the whole batch's.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mfac_compress.mfac.shared_batchnorm import shared_batchnorm
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.stages.training_mode import train_mode

_TOLERANCE = 1e-3


def backward(context: RunContext, module: nn.Module, x: Tensor, y: Tensor, ranks: Ranks) -> float:
    """Set the gradients of a batch's loss, the same in all processes.

    Args:
        context: The run's.
        module: In training mode; the same in all processes.
        x: The whole batch, in all processes. One smaller than their number is not shared.
        y: Its targets.
        ranks: Who share it.

    Returns:
        The loss of the whole batch.
    """
    device, section = context.device, context.recipe.recover
    shared = 1 < ranks.size <= len(x)
    own = ranks.shard(len(x)) if shared else slice(None)
    with shared_batchnorm(module, ranks.all_reduce) if shared else nullcontext():
        outputs = module(x[own].to(device))
        if shared:
            everyone = ranks.all_gather(outputs.detach())
            everyone[own] = outputs
            outputs = everyone
        loss = context.task.loss(outputs, y.to(device), label_smoothing=section.label_smoothing)
        loss.backward()
    if shared:
        _set_gradient(module, ranks.all_reduce(_gradient(module)))
    return loss.item()


def check_sharing(context: RunContext) -> None:
    """Check on a small batch that shares of it give the gradient of the whole.

    Raises:
        InputError: If not: dropout, or a layer other than batch norm that mixes samples.
    """
    ranks, split = context.ranks, context.data.recovery
    if ranks.size == 1 or not context.recipe.recover.epochs or len(split) < ranks.size:
        return
    x, y = next(split.batches(2 * ranks.size))
    gradients, drawn = [], _random_state(context)
    for who in (Ranks(), ranks):
        module = context.fresh_module()
        train_mode(module)
        backward(context, module, x, y, who)
        gradients.append(_gradient(module))
    with ranks.raise_on_every_rank():
        _compare(context, *gradients, draws=not torch.equal(drawn, _random_state(context)))


def _compare(context: RunContext, whole: Tensor, shared: Tensor, *, draws: bool) -> None:
    where = context.recipe.where("recover.epochs")
    if draws:
        raise InputError(
            f"{where}: must be 0 in several processes for a model that draws random numbers while "
            "it trains (dropout), since no two processes draw the same. Recover in one process."
        )
    if (shared - whole).norm() > _TOLERANCE * whole.norm():
        raise InputError(
            f"{where}: must be 0 in several processes for a model in which samples of a batch "
            "depend on each other otherwise than through PyTorch's batch norm. Got gradients that "
            f"differ by {(shared - whole).norm() / whole.norm():.2g} of the whole. Recover in one "
            "process."
        )


def _random_state(context: RunContext) -> Tensor:
    """Of the generators that a model draws from."""
    state = torch.get_rng_state()
    if context.device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(context.device)])
    return state


def _gradient(module: nn.Module) -> Tensor:
    """All gradients in one vector, so that they travel together."""
    return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])


def _set_gradient(module: nn.Module, gradient: Tensor) -> None:
    parameters = [p for p in module.parameters() if p.grad is not None]
    parts = gradient.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))
