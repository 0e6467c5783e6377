"""Short fine-tuning in which no removed weight comes back, then batch-norm statistics."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mfac_compress.mfac.batchnorm import has_batchnorm
from mfac_compress.mfac.masking import MaskHooks
from mfac_compress.mfac.optimizer import MFAC
from mfac_compress.pipeline.errors import InputError, StageError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.forward import (
    random_state,
    seed_random_state,
    set_random_state,
)
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.inputs.training_mode import train_mode
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Augment, RecoverSection
from mfac_compress.pipeline.run.checkpoint import Checkpoints
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.batchnorm import Batchnorm, augmented, recalibrate_batchnorm
from mfac_compress.pipeline.stages.divergence import Divergence
from mfac_compress.pipeline.stages.prune import no_holdout
from mfac_compress.pipeline.stages.shared_batch import Loss, backward, check_sharing
from mfac_compress.pipeline.stages.training_check import check_training
from mfac_compress.pipeline.weights import not_finite


@dataclass(frozen=True)
class Recovered:
    """What the stage says of the training."""

    loss_by_epoch: tuple[float, ...]
    """Mean training loss."""
    batchnorm: Batchnorm
    """What became of batch-norm statistics."""


def check(
    ranks: Ranks,
    *,
    model: Model,
    section: RecoverSection,
    recovery: Split | None,
    calibration: CalibrationData,
    augment: Augment,
    where: Callable[..., str],
    epochs_key: str,
    **_: Any,
) -> None:
    """Check that the model can be trained as the recipe says, in these processes.

    Args:
        ranks: The processes.
        model: The dense model.
        section: How to train.
        recovery: What to train on.
        calibration: Has the loss, and samples for choices.
        augment: Random changes of images.
        where: Says where a key of the recipe was given.
        epochs_key: The key that says for how many epochs.

    Raises:
        InputError: If not.
    """
    loss, device = _loss(section, calibration), calibration.device
    with ranks.raise_on_every_rank():
        batchnorm = has_batchnorm(model.module)
        if section.batchnorm == "auto" and batchnorm and not len(calibration.draws.holdout):
            raise no_holdout(calibration, where)
        if section.batchnorm != "never" and batchnorm:
            next(augmented(calibration, augment, calibration.draws.pool[:2]))
        if section.epochs and section.batch_size == 1 and batchnorm:
            raise InputError(
                f"{where('recover.batch_size')}: must be at least 2 for a model with batch "
                "norm, which has no variance of one sample. Got 1."
            )
        if section.epochs:
            setting = f"{where(epochs_key)} is {section.epochs}"
            check_training(model, recovery, loss, section.batch_size, device, setting)
    if section.epochs:
        check_sharing(model, recovery, loss, device, ranks, where(epochs_key))


def recover(
    job: Job,
    *,
    model: Model,
    section: RecoverSection,
    recovery: Split | None,
    calibration: CalibrationData,
    augment: Augment,
    seed: int,
) -> Recovered:
    """Fine-tune the pruned model; the state goes to the job's folder.

    Args:
        job: Where, with whom, after the pruned state.
        model: The dense model.
        section: How to train.
        recovery: What to train on; None without epochs.
        calibration: For batch-norm statistics; has the loss and the device.
        augment: Random changes of the images that these are taken of.
        seed: Of all random numbers.
    """
    ranks, module, pruned = job.ranks, model.copy(), job.before["state"].folder
    state = ranks.on_rank_zero(lambda: State.load(pruned))
    state.into(module)
    losses = []
    if section.epochs:
        assert recovery is not None  # the recipe holds this
        loss = _loss(section, calibration)
        training = Training(module, state.masks, section, recovery, loss, seed)
        losses = list(training.run(ranks, job.progress, job.checkpoints))
    batchnorm = ranks.on_rank_zero(
        lambda: recalibrate_batchnorm(
            module, Divergence(model.module, calibration), section.batchnorm, augment
        )
    )
    ranks.on_rank_zero(lambda: State.of(module, state.masks).save(job.folder))
    return Recovered(tuple(losses), batchnorm)


def _loss(section: RecoverSection, calibration: CalibrationData) -> Loss:
    return partial(calibration.task.loss, label_smoothing=section.label_smoothing)


class Training:
    """A model in training, which can go on from the end of any epoch.

    Args:
        module: The pruned model, which is changed.
        masks: True = kept, of each pruned tensor.
        section: How to train.
        split: What to train on.
        loss: Of outputs and targets: the mean over a batch.
        seed: Of all random numbers.
    """

    def __init__(
        self,
        module: nn.Module,
        masks: Mapping[str, Tensor],
        section: RecoverSection,
        split: Split,
        loss: Loss,
        seed: int,
    ) -> None:
        self._module, self._masks, self._loss = module, masks, loss
        self._section, self._split = section, split
        self._parameters = dict(module.named_parameters())
        self._device = next(iter(self._parameters.values())).device
        self._batches = math.ceil(len(split) / section.batch_size)
        self._optimizer = _optimizer(section, module)
        curve = _lr_curve(section, section.epochs * self._batches)
        self._scheduler = LambdaLR(self._optimizer, curve)
        self._generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        self._losses: list[float] = []

    def run(
        self, ranks: Ranks, progress: Progress, checkpoints: Checkpoints | None = None
    ) -> Iterator[float]:
        """Yield the mean loss of each epoch, also of those before a checkpoint.

        Args:
            ranks: Who share each batch.
            progress: Shows the batches.
            checkpoints: Where to go on from, and where each epoch but the last is kept.
        """
        section, pruned = self._section, {name: self._parameters[name] for name in self._masks}
        seed_random_state(self._seed)
        if checkpoints is not None:
            found = ranks.on_rank_zero(checkpoints.load)
            if found is not None:
                self._restore(found)
        train_mode(self._module)
        yield from self._losses
        progress.plan((section.epochs - len(self._losses)) * self._batches)
        with MaskHooks(pruned, self._masks).attach(self._optimizer) as hooks:
            for epoch in range(len(self._losses), section.epochs):
                total = self._epoch(epoch, ranks, progress)
                with ranks.raise_on_every_rank():
                    hooks.check()
                    _check_finite(self._module, epoch)
                    self._losses.append(_finite(total / len(self._split), epoch))
                if checkpoints is not None and epoch + 1 < section.epochs:
                    content = self._content()
                    ranks.on_rank_zero(lambda at=epoch, c=content: checkpoints.save(at + 1, c))
                yield self._losses[-1]
        set_training(self._module, False)

    def _epoch(self, epoch: int, ranks: Ranks, progress: Progress) -> float:
        """Train on each sample once; returns the sum of their losses."""
        size, total = self._section.batch_size, 0.0
        batches = self._split.batches(size, shuffle=True, generator=self._generator, augment=True)
        label = f"recover, epoch {epoch + 1}/{self._section.epochs}"
        for batch in progress.track(batches, label, self._batches):
            if batch.size == 1 < size:
                continue  # the odd one out has no variance for batch norm
            self._optimizer.zero_grad(set_to_none=True)
            loss = backward(self._module, batch, self._loss, self._device, ranks)
            total += loss * batch.size
            self._optimizer.step()
            self._scheduler.step()
        return total

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and all buffers, also those that no state dict holds."""
        return {**self._parameters, **dict(self._module.named_buffers())}

    def _content(self) -> dict[str, Any]:
        """All that the next epoch starts from."""
        return {
            "losses": self._losses,
            "tensors": self._tensors(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "generator": self._generator.get_state(),
            "random": random_state(self._device),
        }

    @torch.no_grad()
    def _restore(self, content: Mapping[str, Any]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(content["tensors"][name])
        self._optimizer.load_state_dict(content["optimizer"])
        self._scheduler.load_state_dict(content["scheduler"])
        self._generator.set_state(content["generator"])
        set_random_state(content["random"], self._device)
        self._losses = content["losses"]


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
