"""Stage 4: short fine-tuning in which no removed weight comes back, then batch-norm statistics."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mfac_compress.mfac.batchnorm import (
    batchnorm_state,
    has_batchnorm,
    reestimate_batchnorm,
)
from mfac_compress.mfac.masking import MaskHooks
from mfac_compress.mfac.optimizer import MFAC
from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.draw import gradient_pool, sampling_key
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.stages.holdout_loss import holdout_loss
from mfac_compress.pipeline.stages.shared_batch import backward
from mfac_compress.pipeline.stages.training_mode import train_mode
from mfac_compress.pipeline.weights import (
    load_masks,
    load_state,
    not_finite,
    restore,
    save_masks,
    save_weights,
)

_BATCHNORM_BATCH = 256


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the final weights depend on, beside the pruned ones."""
    recovery = context.data.recovery
    return {
        "recover": context.recipe.recover.model_dump(),
        "seed": context.recipe.run.seed,
        "samples": recovery and recovery.fingerprint,
        "batchnorm_samples": [context.data.calibration.fingerprint, sampling_key(context)],
        "loss": context.task.loss_name,
        "device": str(context.device),
    }


def recover(context: RunContext, pruned: Path, folder: Path) -> dict[str, Any]:
    """Fine-tune the pruned model; saves weights and masks to ``folder``, returns facts."""
    ranks, module = context.ranks, context.fresh_module()
    state, masks = ranks.on_rank_zero(lambda: (load_state(pruned), load_masks(pruned)))
    restore(module, state)
    losses = list(train(context, module, masks)) if context.recipe.recover.epochs else []
    batchnorm = ranks.on_rank_zero(lambda: recalibrate_batchnorm(context, module))
    ranks.on_rank_zero(lambda: (save_weights(module, folder), save_masks(masks, folder)))
    return {"loss_by_epoch": losses, "batchnorm": batchnorm}


def train(context: RunContext, module: nn.Module, masks: dict[str, Tensor]) -> Iterator[float]:
    """Yield the mean loss of each epoch."""
    section, split = context.recipe.recover, context.data.recovery
    assert split is not None  # the recipe holds this
    batches_per_epoch = math.ceil(len(split) / section.batch_size)
    optimizer = _optimizer(section, module)
    scheduler = LambdaLR(optimizer, _lr_curve(section, section.epochs * batches_per_epoch))
    generator = torch.Generator().manual_seed(context.recipe.run.seed)
    train_mode(module)
    context.progress.plan(section.epochs * batches_per_epoch)
    with MaskHooks(context.parameters_of(module), masks).attach(optimizer) as hooks:
        for epoch in range(section.epochs):
            total = 0.0
            batches = split.batches(
                section.batch_size, shuffle=True, generator=generator, augment=True
            )
            label = f"recover, epoch {epoch + 1}/{section.epochs}"
            for x, y in context.progress.track(batches, label, batches_per_epoch):
                if len(x) == 1 < section.batch_size:
                    continue  # the odd one out has no variance for batch norm
                optimizer.zero_grad(set_to_none=True)
                total += backward(context, module, x, y, context.ranks) * len(x)
                optimizer.step()
                scheduler.step()
            with context.ranks.raise_on_every_rank():
                hooks.check()
                _check_finite(module, epoch)
                loss = _finite(total / len(split), epoch)
            yield loss
    set_training(module, False)


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise StageError(
            "recover",
            f"the training loss must stay finite. Got {loss} in epoch {epoch + 1}. "
            "Lower recover.lr.",
        )
    return loss


def _check_finite(module: nn.Module, epoch: int) -> None:
    """The loss of a batch is that before its step: the last step shows in the weights only."""
    broken = not_finite(module)
    if broken:
        raise StageError(
            "recover",
            f"weights must stay finite. Got NaN or infinity in {broken[0]} after epoch "
            f"{epoch + 1}. Lower recover.lr.",
        )


def _optimizer(section: RecoverSection, module: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if section.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=section.lr, weight_decay=section.weight_decay)
    if section.optimizer == "mfac":
        return MFAC(
            parameters,
            lr=section.lr,
            num_gradients=section.window.num_gradients,
            damping=section.window.damping,
            momentum=section.momentum,
            weight_decay=section.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=section.lr,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
    )


def _lr_curve(section: RecoverSection, steps: int) -> Callable[[int], float]:
    """Share of the learning rate at each step; falls to zero, unless constant."""
    curves: dict[str, Callable[[int], float]] = {
        "cosine": lambda step: (1 + math.cos(math.pi * step / steps)) / 2,
        "linear": lambda step: 1 - step / steps,
        "constant": lambda step: 1.0,
    }
    return curves[section.schedule]


def recalibrate_batchnorm(context: RunContext, module: nn.Module) -> dict[str, Any]:
    """Re-estimate batch-norm statistics if the recipe says so, or if it helps.

    It hurts at low sparsity and is worth much at high: `auto` measures the loss on calibration
    samples that neither gradients nor statistics have seen.
    """
    choice = context.recipe.recover.batchnorm
    if choice == "never" or not has_batchnorm(module):
        return {"reestimated": False}
    before = batchnorm_state(module)
    split, pool = context.data.calibration, gradient_pool(context)
    loss_before = holdout_loss(context, module) if choice == "auto" else None
    reestimate_batchnorm(
        module,
        (x.to(context.device) for x, _ in split.batches(_BATCHNORM_BATCH, indices=pool)),
    )
    if choice == "always":
        return {"reestimated": True}
    loss_after = holdout_loss(context, module)
    better = loss_after < loss_before
    if not better:
        module.load_state_dict(before, strict=False)
    return {"reestimated": better, "holdout_loss": [loss_before, loss_after]}
