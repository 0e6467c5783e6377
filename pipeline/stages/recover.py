"""Short fine-tuning in which no removed weight comes back, then batch-norm statistics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any

import torch
from torch import nn

from mfac_compress.mfac.batchnorm import has_batchnorm
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.training_mode import train_mode
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.checkpoint import Checkpoints
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.batchnorm import Batchnorm, augmented, recalibrate_batchnorm
from mfac_compress.pipeline.stages.distillation import Distillation
from mfac_compress.pipeline.stages.divergence import Divergence, reported
from mfac_compress.pipeline.stages.objective import Accelerated, Objective, Supervised
from mfac_compress.pipeline.stages.prune import no_holdout
from mfac_compress.pipeline.stages.quantization_aware import (
    FileIn8Bits,
    QuantizationAware,
    Rounding,
    check_rounding,
)
from mfac_compress.pipeline.stages.range_test import STEPS, Tried, try_rates
from mfac_compress.pipeline.stages.shared_batch import check_sharing
from mfac_compress.pipeline.stages.training import Training
from mfac_compress.pipeline.stages.training_check import check_training


@dataclass(frozen=True)
class Recovered:
    """What the stage says of the training."""

    loss_by_epoch: tuple[float, ...]
    """Mean training loss."""
    batchnorm: Batchnorm
    """What became of batch-norm statistics."""
    kept_epoch: int | None = None
    """The epoch whose weights are kept; 0: none of them, but what the training started from. null:
    there was no training."""
    divergence: tuple[float | None, ...] = ()
    """From the dense model's outputs on held-out samples, before the training and after each epoch;
    the epoch is kept after which it is least. null: outputs were not finite. Empty where the last
    epoch is kept, or there was no training. With quantization-aware epochs, that before them and
    after each of them is measured with fake quantization, and only these are compared."""
    lr: float | None = None
    """Learning rate at the start; null: there was no training."""
    tried: tuple[Tried, ...] = ()
    """Learning rates that were tried, where it was chosen."""
    loop: str | None = None
    """The user's own training, which then did all of it; null: there was none."""
    quantization_aware: int = 0
    """Number of the last epochs that were quantization-aware."""


def check(
    ranks: Ranks,
    *,
    model: Model,
    section: RecoverSection,
    samples: TrainingSamples | None,
    calibration: CalibrationData,
    augment: ImageChanges,
    in_8_bits: FileIn8Bits | None = None,
    where: Callable[..., str],
    epochs_key: str,
    **_: Any,
) -> None:
    """Check that the model can be trained as the recipe says, in these processes.

    Args:
        ranks: The processes.
        model: The dense model.
        section: How to train.
        samples: What to train on; None without epochs.
        calibration: Has the loss, and samples for choices.
        augment: Random changes of images.
        in_8_bits: How the file in 8 bits is made, where the training rounds as it does.
        where: Says where a key of the recipe was given.
        epochs_key: The key that says for how many epochs.

    Raises:
        InputError: If not.
    """
    objective, device = objective_of(model, section, calibration), calibration.device
    with ranks.raise_on_every_rank():
        batchnorm = has_batchnorm(model.module)
        uses_batch = batchnorm and not section.freeze_batchnorm
        judged = section.chooses or (section.batchnorm == "auto" and batchnorm)
        if judged and not len(calibration.draws.holdout):
            raise no_holdout(calibration, where)
        if section.batchnorm != "never" and batchnorm:
            next(augmented(calibration, augment, calibration.draws.pool[:2]))
        if samples is not None:
            samples.try_changes()
        if section.epochs and section.batch_size == 1 and uses_batch:
            raise InputError(
                f"{where('recover.batch_size')}: must be at least 2 for a model with batch "
                "norm, which has no variance of one sample. Got 1."
            )
        if section.epochs:
            setting = f"{where(epochs_key)} is {section.epochs}"
            check_training(model, samples, objective, section, device, setting)
    if in_8_bits is not None:
        key = where("recover.quantization_aware")
        train = partial(
            train_mode, dropout=section.uses_dropout, freeze_batchnorm=section.freeze_batchnorm
        )
        ranks.on_rank_zero(lambda: check_rounding(model, in_8_bits, calibration, key, train))
    if section.epochs:
        # In float32: roundings to bfloat16 would hide what the comparison looks for.
        exact = _in_float32(model, section, calibration)
        check_sharing(model, samples, exact, section, device, ranks, where(epochs_key))


def recover(
    job: Job,
    *,
    model: Model,
    section: RecoverSection,
    samples: TrainingSamples | None,
    calibration: CalibrationData,
    augment: ImageChanges,
    seed: int,
    in_8_bits: FileIn8Bits | None = None,
) -> Recovered:
    """Fine-tune the pruned model; the state goes to the job's folder.

    Args:
        job: Where, with whom, after the pruned state.
        model: The dense model.
        section: How to train.
        samples: What to train on; None without epochs.
        calibration: For batch-norm statistics; has the loss and the device.
        augment: Random changes of the images that these are taken of.
        seed: Of all random numbers.
        in_8_bits: How the file in 8 bits is made, where the last epochs round as it does.
    """
    folder = job.before["state"].folder
    recovery = _Recovery(
        job,
        model,
        section,
        job.ranks.on_rank_zero(lambda: State.load(folder)),
        divergence_of(model, section, calibration),
        augment,
        seed,
        in_8_bits,
    )
    return recovery.train(samples) if section.epochs else recovery.only_batchnorm()


class _Recovery:
    """The pruned model on its way to the recovered one.

    Args:
        job: Where, and with whom.
        model: The dense model.
        section: How to train.
        state: The pruned model.
        divergence: From the dense model; has the samples for choices.
        augment: Random changes of images.
        seed: Of all random numbers.
        in_8_bits: How the file in 8 bits is made, where the last epochs round as it does.
    """

    def __init__(
        self,
        job: Job,
        model: Model,
        section: RecoverSection,
        state: State,
        divergence: Divergence,
        augment: ImageChanges,
        seed: int,
        in_8_bits: FileIn8Bits | None,
    ) -> None:
        self._in_8_bits = in_8_bits
        self._job, self._model, self._section, self._seed = job, model, section, seed
        self._state, self._divergence, self._augment = state, divergence, augment

    def only_batchnorm(self) -> Recovered:
        """Nothing but the statistics changes."""
        return Recovered((), self._finish(self._pruned()))

    def train(self, samples: TrainingSamples) -> Recovered:
        """Train on the samples."""
        job, keeps_best = self._job, self._section.keeps_best
        found = job.ranks.on_rank_zero(job.checkpoints.load)
        lr, tried = self._rate(samples) if found is None else _rate_of(found)
        section = self._section.model_copy(update={"lr": lr})
        module = self._pruned()
        # A checkpoint holds the divergence that was measured before the training.
        measures = keeps_best and found is None
        aware = self._in_8_bits and QuantizationAware(section.quantization_aware, self._rounding)
        training = Training(
            module,
            self._state.masks,
            section,
            samples,
            self._objective,
            self._seed,
            self._divergence.of if keeps_best else None,
            job.ranks.on_rank_zero(self._divergence_before) if measures else nan,
            aware,
        )
        save = partial(_save, job.checkpoints, lr, tried)
        losses = tuple(training.run(job.ranks, job.progress, save, found and found["training"]))
        best = training.best
        with training.rounds():
            batchnorm = self._finish(module)
        if aware:
            job.ranks.on_rank_zero(lambda: aware.rounding.save(job.folder))
        return Recovered(
            losses,
            batchnorm,
            kept_epoch=best.epoch if best else len(losses),
            divergence=tuple(map(reported, best.divergences)) if best else (),
            lr=lr,
            tried=tried,
            quantization_aware=section.quantization_aware,
        )

    def _rate(self, samples: TrainingSamples) -> tuple[float, tuple[Tried, ...]]:
        """The learning rate, and those that were tried for it."""
        section, ranks = self._section, self._job.ranks
        if section.lr != "auto":
            return section.lr, ()
        generator = torch.Generator().manual_seed(self._seed)
        few = samples.part(STEPS * section.batch_size, generator)

        def divergence_after(section: RecoverSection) -> float:
            module, masks = self._pruned(), self._state.masks
            training = Training(module, masks, section, few, self._objective, self._seed)
            try:
                training.try_epoch(ranks)
            except ValueError:  # M-FAC takes no gradients that are not finite
                return nan
            return ranks.on_rank_zero(lambda: self._divergence.of(module))

        return try_rates(section, divergence_after, self._job.progress)

    def _divergence_before(self) -> float:
        """That of the pruned model with the statistics that it would have without training."""
        module = self._pruned()
        self._recalibrate(module)
        return self._divergence.of(module)

    def _rounding(self, module: nn.Module) -> tuple[Rounding, float]:
        """How a model in training would round if it shipped now, and its divergence if it did."""
        ships = State.of(module, {}).into(self._model.copy())
        self._recalibrate(ships)
        calibration = self._divergence.calibration
        rounding = self._in_8_bits.rounding(self._model, ships, calibration, self._job.folder)
        with rounding.of(ships):
            return rounding, self._divergence.of(ships)

    def _finish(self, module: nn.Module) -> Batchnorm:
        """Re-estimate statistics and save the state; the same answer for all processes."""
        ranks = self._job.ranks
        batchnorm = ranks.on_rank_zero(lambda: self._recalibrate(module))
        ranks.on_rank_zero(lambda: State.of(module, self._state.masks).save(self._job.folder))
        return batchnorm

    def _recalibrate(self, module: nn.Module) -> Batchnorm:
        return recalibrate_batchnorm(
            module, self._divergence, self._section.batchnorm, self._augment
        )

    def _pruned(self) -> nn.Module:
        return self._state.into(self._model.copy())

    @property
    def _objective(self) -> Objective:
        return objective_of(self._model, self._section, self._divergence.calibration)


def _save(
    checkpoints: Checkpoints,
    lr: float,
    tried: Sequence[Tried],
    number: int,
    training: Mapping[str, Any],
) -> None:
    """Save where a training is, with what was chosen before it."""
    rates = [(one.lr, one.divergence) for one in tried]
    checkpoints.save(number, {"lr": lr, "tried": rates, "training": training})


def _rate_of(found: Mapping[str, Any]) -> tuple[float, tuple[Tried, ...]]:
    """The learning rate of a checkpoint, and those that were tried for it."""
    return found["lr"], tuple(Tried(*one) for one in found["tried"])


def objective_of(model: Model, section: RecoverSection, calibration: CalibrationData) -> Objective:
    """What a training makes smaller, as the recipe says.

    Args:
        model: The dense model.
        section: How to train.
        calibration: Has the task's loss.
    """
    objective = _in_float32(model, section, calibration)
    bfloat16, channels_last = section.precision == "bfloat16", section.channels_last
    if not (bfloat16 or channels_last):
        return objective
    return Accelerated(objective, bfloat16, channels_last)


def divergence_of(
    model: Model, section: RecoverSection, calibration: CalibrationData
) -> Divergence:
    """What epochs and learning rates are chosen by: where the dense model is the teacher, at the
    temperature at which it teaches."""
    temperature = section.temperature(calibration.task.loss_name)
    return Divergence(model.module, calibration, temperature=temperature)


def _in_float32(model: Model, section: RecoverSection, calibration: CalibrationData) -> Objective:
    task = calibration.task
    loss = partial(task.loss, label_smoothing=section.label_smoothing)
    if section.distill is None:
        return Supervised(loss)
    return Distillation.of(section.distill, model.module, task.loss_name, loss)
