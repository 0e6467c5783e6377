"""Short fine-tuning in which no removed weight comes back, then batch-norm statistics."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

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
from mfac_compress.pipeline.errors import InputError, StageError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.inputs.training_mode import train_mode
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.stages.holdout_loss import holdout_loss
from mfac_compress.pipeline.stages.prune import no_holdout
from mfac_compress.pipeline.stages.shared_batch import backward, check_sharing
from mfac_compress.pipeline.stages.training_check import check_training
from mfac_compress.pipeline.weights import (
    load_masks,
    load_state,
    not_finite,
    restore,
    save_masks,
    save_weights,
)

_BATCHNORM_BATCH = 256


@dataclass(frozen=True)
class Batchnorm:
    """What became of batch-norm statistics.

    Args:
        reestimated: Whether they were replaced by those of calibration samples.
        holdout_loss: Loss before and after, by which that was chosen; None where it was not.
    """

    reestimated: bool
    holdout_loss: tuple[float, float] | None = None


@dataclass(frozen=True)
class Recovered:
    """What the stage says of the training.

    Args:
        loss_by_epoch: Mean training loss.
        batchnorm: What became of batch-norm statistics.
    """

    loss_by_epoch: tuple[float, ...]
    batchnorm: Batchnorm


def check(
    ranks: Ranks,
    *,
    model: Model,
    section: RecoverSection,
    recovery: Split | None,
    calibration: CalibrationData,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check that the model can be trained as the recipe says, in these processes.

    Raises:
        InputError: If not.
    """
    loss, device = _loss(section, calibration), calibration.device
    with ranks.raise_on_every_rank():
        batchnorm = has_batchnorm(model.module)
        if section.batchnorm == "auto" and batchnorm and not len(calibration.draws.holdout):
            raise no_holdout(calibration, where)
        if section.epochs and section.batch_size == 1 and batchnorm:
            raise InputError(
                f"{where('recover.batch_size')}: must be at least 2 for a model with batch "
                "norm, which has no variance of one sample. Got 1."
            )
        if section.epochs:
            setting = f"{where('recover.epochs')} is {section.epochs}"
            check_training(model, recovery, loss, section.batch_size, device, setting)
    if section.epochs:
        check_sharing(model, recovery, loss, device, ranks, where)


def recover(
    job: Job,
    *,
    model: Model,
    section: RecoverSection,
    recovery: Split | None,
    calibration: CalibrationData,
    seed: int,
) -> Recovered:
    """Fine-tune the pruned model; weights and masks go to the job's folder.

    Args:
        job: Where, with whom, after the stage ``prune``.
        model: The dense model.
        section: How to train.
        recovery: What to train on; None without epochs.
        calibration: For batch-norm statistics; has the loss and the device.
        seed: Of the order of the samples, and of their random changes.
    """
    ranks, module, pruned = job.ranks, model.copy(), job.before["prune"].folder
    state, masks = ranks.on_rank_zero(lambda: (load_state(pruned), load_masks(pruned)))
    restore(module, state)
    losses = []
    if section.epochs:
        assert recovery is not None  # the recipe holds this
        loss = _loss(section, calibration)
        losses = list(train(module, masks, section, recovery, loss, seed, ranks, job.progress))
    batchnorm = ranks.on_rank_zero(
        lambda: recalibrate_batchnorm(module, model.module, section.batchnorm, calibration)
    )
    ranks.on_rank_zero(lambda: (save_weights(module, job.folder), save_masks(masks, job.folder)))
    return Recovered(tuple(losses), batchnorm)


def _loss(section: RecoverSection, calibration: CalibrationData) -> Callable[[Any, Any], Tensor]:
    return partial(calibration.task.loss, label_smoothing=section.label_smoothing)


def train(
    module: nn.Module,
    masks: Mapping[str, Tensor],
    section: RecoverSection,
    split: Split,
    loss: Callable[[Any, Any], Tensor],
    seed: int,
    ranks: Ranks,
    progress: Progress,
) -> Iterator[float]:
    """Yield the mean loss of each epoch.

    Args:
        module: The pruned model, which is changed.
        masks: True = kept, of each pruned tensor.
        section: How to train.
        split: What to train on.
        loss: Of outputs and targets: the mean over a batch.
        seed: Of the order of the samples, and of their random changes.
        ranks: Who share each batch.
        progress: Shows the batches.
    """
    batches_per_epoch = math.ceil(len(split) / section.batch_size)
    optimizer = _optimizer(section, module)
    scheduler = LambdaLR(optimizer, _lr_curve(section, section.epochs * batches_per_epoch))
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(module.named_parameters())
    device = next(iter(parameters.values())).device
    train_mode(module)
    progress.plan(section.epochs * batches_per_epoch)
    pruned = {name: parameters[name] for name in masks}
    with MaskHooks(pruned, masks).attach(optimizer) as hooks:
        for epoch in range(section.epochs):
            total = 0.0
            batches = split.batches(
                section.batch_size, shuffle=True, generator=generator, augment=True
            )
            label = f"recover, epoch {epoch + 1}/{section.epochs}"
            for batch in progress.track(batches, label, batches_per_epoch):
                if batch.size == 1 < section.batch_size:
                    continue  # the odd one out has no variance for batch norm
                optimizer.zero_grad(set_to_none=True)
                total += backward(module, batch, loss, device, ranks) * batch.size
                optimizer.step()
                scheduler.step()
            with ranks.raise_on_every_rank():
                hooks.check()
                _check_finite(module, epoch)
                mean = _finite(total / len(split), epoch)
            yield mean
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


def recalibrate_batchnorm(
    module: nn.Module,
    dense: nn.Module,
    choice: Literal["auto", "always", "never"],
    calibration: CalibrationData,
) -> Batchnorm:
    """Re-estimate batch-norm statistics if the recipe says so, or if it helps.

    It hurts at low sparsity and is worth much at high: `auto` measures the loss on calibration
    samples that neither gradients nor statistics have seen.

    Args:
        module: The model, which is changed.
        dense: The dense model.
        choice: The recipe's.
        calibration: Has the samples.
    """
    if choice == "never" or not has_batchnorm(module):
        return Batchnorm(reestimated=False)
    before = batchnorm_state(module)
    loss_before = holdout_loss(module, dense, calibration) if choice == "auto" else None
    batches = calibration.batches(_BATCHNORM_BATCH, calibration.draws.pool)
    reestimate_batchnorm(module, (batch.inputs for batch in batches))
    if loss_before is None:
        return Batchnorm(reestimated=True)
    loss_after = holdout_loss(module, dense, calibration)
    better = loss_after < loss_before
    if not better:
        module.load_state_dict(before, strict=False)
    return Batchnorm(better, (loss_before, loss_after))
