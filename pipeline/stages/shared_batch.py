"""The gradient of a batch whose samples several processes share.

Each process runs the model on its share. The loss is taken of what all have computed, so it may be
any function of that, and the gradients of the shares add up to the whole batch's.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Batch, map_tensors
from mfac_compress.mfac.shared_batchnorm import shared_batchnorm
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.training_mode import train_mode
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.stages.objective import Objective

_TOLERANCE = 1e-3


def backward(
    module: nn.Module, batch: Batch, objective: Objective, device: torch.device, ranks: Ranks
) -> float:
    """Set the gradients of a batch's loss, the same in all processes.

    Args:
        module: In training mode; the same in all processes.
        batch: The whole batch, in all processes. One smaller than their number is not shared.
        objective: What is made smaller.
        device: The module's.
        ranks: Who share it.

    Returns:
        The loss of the whole batch.
    """
    shared = 1 < ranks.size <= batch.size
    own = batch.rows(ranks.shard(batch.size)) if shared else batch
    with shared_batchnorm(module, ranks.all_reduce) if shared else nullcontext():
        computed = objective.compute(module, own.to(device).inputs)
        if shared:
            computed = map_tensors(lambda part: _of_all(part, ranks), computed)
        value = objective.loss(computed, batch.to(device).targets)
        value.backward()
    if shared:
        _set_gradient(module, ranks.all_reduce(_gradient(module)))
    return value.item()


def _of_all(own: Tensor, ranks: Ranks) -> Tensor:
    """Everyone's rows in order, of which the own ones have a gradient."""
    everyone = ranks.all_gather(own.detach())
    everyone[ranks.shard(len(everyone))] = own
    return everyone


def check_sharing(
    model: Model,
    samples: TrainingSamples,
    objective: Objective,
    section: RecoverSection,
    device: torch.device,
    ranks: Ranks,
    where: str,
) -> None:
    """Check on a small batch that shares of it give the gradient of the whole.

    Args:
        model: Trained in copies.
        samples: Has the batch.
        objective: What is made smaller.
        section: How it is trained.
        device: The model's.
        ranks: Who share it.
        where: The key that says that the recipe trains, and where it was given.

    Raises:
        InputError: If not: dropout, or a layer other than batch norm that mixes samples.
    """
    if ranks.size == 1 or len(samples) < ranks.size:
        return
    batch = samples.first(2 * ranks.size)
    gradients, drawn = [], _random_state(device)
    for who in (Ranks(), ranks):
        module = model.copy()
        train_mode(module, dropout=section.uses_dropout, freeze_batchnorm=section.freeze_batchnorm)
        backward(module, batch, objective, device, who)
        gradients.append(_gradient(module))
    with ranks.raise_on_every_rank():
        draws = not torch.equal(drawn, _random_state(device))
        _compare(*gradients, draws=draws, where=where)


def _compare(whole: Tensor, shared: Tensor, *, draws: bool, where: str) -> None:
    if draws:
        raise InputError(
            f"{where}: must be 0 in several processes for a model that draws random numbers while "
            "it trains (dropout), since no two processes draw the same. Recover in one process, or "
            "set recover.dropout to false."
        )
    if (shared - whole).norm() > _TOLERANCE * whole.norm():
        raise InputError(
            f"{where}: must be 0 in several processes for a model in which samples of a batch "
            "depend on each other otherwise than through PyTorch's batch norm. Got gradients that "
            f"differ by {(shared - whole).norm() / whole.norm():.2g} of the whole. Recover in one "
            "process."
        )


def _random_state(device: torch.device) -> Tensor:
    """Of the generators that a model draws from."""
    state = torch.get_rng_state()
    if device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(device)])
    return state


def _gradient(module: nn.Module) -> Tensor:
    """All gradients in one vector, so that they travel together."""
    return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])


def _set_gradient(module: nn.Module, gradient: Tensor) -> None:
    parameters = [p for p in module.parameters() if p.grad is not None]
    parts = gradient.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))
