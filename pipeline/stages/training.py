"""Training in which no removed weight comes back, and which can go on from the end of any epoch."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mfac_compress.mfac.masking import MaskHooks
from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.inputs.forward import (
    random_state,
    random_state_kept,
    seed_random_state,
    set_random_state,
)
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.inputs.training_mode import train_mode
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.stages.best_epoch import BestEpoch, copy_into
from mfac_compress.pipeline.stages.mixing import Mixing
from mfac_compress.pipeline.stages.objective import Objective
from mfac_compress.pipeline.stages.optimizers import lr_curve, optimizer_of
from mfac_compress.pipeline.stages.quantization_aware import QuantizationAware
from mfac_compress.pipeline.stages.shared_batch import backward
from mfac_compress.pipeline.stages.weight_average import WeightAverage
from mfac_compress.pipeline.weights import not_finite

Save = Callable[[int, Mapping[str, Any]], None]


class Training:
    """A model in training.

    Args:
        module: The pruned model, which is changed.
        masks: True = kept, of each pruned tensor.
        section: How to train; the learning rate is a number.
        samples: What to train on.
        objective: What is made smaller.
        seed: Of all random numbers.
        divergence_of: Divergence of a model, by which the best epoch is kept; None to keep the
            last one.
        start: That of the model before the training.
        quantization_aware: Which epochs round, and how; None for none.

    Attributes:
        losses: Mean loss of each epoch.
        best: Which epoch is the best so far; None where the last one is kept.
    """

    def __init__(
        self,
        module: nn.Module,
        masks: Mapping[str, Tensor],
        section: RecoverSection,
        samples: TrainingSamples,
        objective: Objective,
        seed: int,
        divergence_of: Callable[[nn.Module], float] | None = None,
        start: float = math.nan,
        quantization_aware: QuantizationAware | None = None,
    ) -> None:
        self._module, self._objective = module, objective
        self._section, self._samples = section, samples
        self._parameters = dict(module.named_parameters())
        self._hooks = MaskHooks({name: self._parameters[name] for name in masks}, masks)
        self._device = next(iter(self._parameters.values())).device
        self._batches = math.ceil(len(samples) / section.batch_size)
        self._optimizer = optimizer_of(section, module)
        curve = lr_curve(section, section.epochs * self._batches)
        self._scheduler = LambdaLR(self._optimizer, curve)
        self._generator = torch.Generator().manual_seed(seed)
        self._mix = Mixing(section.mixup, section.cutmix)
        self._seed = seed
        self._divergence_of = divergence_of
        self._aware = quantization_aware
        self._average = section.ema and WeightAverage(self._tensors(), section.ema)
        self.losses: list[float] = []
        self.best = divergence_of and BestEpoch(self._tensors(), start, section.patience)

    def run(
        self,
        ranks: Ranks,
        progress: Progress,
        save: Save | None = None,
        found: Mapping[str, Any] | None = None,
    ) -> Iterator[float]:
        """Yield the mean loss of each epoch, also of those before a checkpoint.

        At the end the module has the weights that are kept, and is in evaluation mode.

        Args:
            ranks: Who share each batch.
            progress: Shows the batches.
            save: Takes the number of each epoch but the last, and all that the next one starts
                from. Only the first process calls it.
            found: What was saved, to go on from.
        """
        section = self._section
        seed_random_state(self._seed)
        if found is not None:
            self._restore(found)
        yield from self.losses
        progress.plan((section.epochs - len(self.losses)) * self._batches)
        with self._hooks.attach(self._optimizer) as hooks:
            for epoch in range(len(self.losses), section.epochs):
                if self.best and self.best.is_over:
                    break
                if self._aware and epoch == section.epochs - self._aware.epochs:
                    self._start_rounding(ranks)
                with self.rounds():
                    total = self._epoch(epoch, ranks, progress)
                with ranks.raise_on_every_rank():
                    hooks.check()
                    _check_finite(self._module, epoch)
                    self.losses.append(_finite(total / len(self._samples), epoch))
                self._judge(ranks)
                if save is not None and epoch + 1 < section.epochs:
                    content = self._content()
                    ranks.on_rank_zero(lambda at=epoch, c=content: save(at + 1, c))
                yield self.losses[-1]
        if self.best:
            self.best.into(self._tensors())
        elif self._average:
            copy_into(self._tensors(), self._average.values)
        set_training(self._module, False)

    def try_epoch(self, ranks: Ranks) -> None:
        """Train for one epoch, whatever comes of it."""
        seed_random_state(self._seed)
        with self._hooks.attach(self._optimizer):
            self._epoch(0, ranks, Progress())
        set_training(self._module, False)

    def _epoch(self, epoch: int, ranks: Ranks, progress: Progress) -> float:
        """Train on each sample once; returns the sum of their losses."""
        section = self._section
        size, total = section.batch_size, 0.0
        frozen = section.freeze_batchnorm
        train_mode(self._module, dropout=section.uses_dropout, freeze_batchnorm=frozen)
        batches = self._samples.shuffled(size, self._generator)
        label = f"recover, epoch {epoch + 1}/{section.epochs}"
        for batch in progress.track(batches, label, self._batches):
            if batch.size == 1 < size and not frozen:
                continue  # the odd one out has no variance for batch norm
            self._optimizer.zero_grad(set_to_none=True)
            mixed = self._mix(batch, self._generator)
            loss = backward(self._module, mixed, self._objective, self._device, ranks)
            total += loss * batch.size
            self._optimizer.step()
            self._scheduler.step()
            if self._average:
                self._average.update(self._tensors())
        return total

    def rounds(self) -> AbstractContextManager[Any]:
        """Let the model round while a block runs, if quantization-aware epochs have begun."""
        return self._aware.rounds(self._module) if self._aware else nullcontext()

    def _start_rounding(self, ranks: Ranks) -> None:
        """Begin with the quantization-aware epochs, of which one is kept, or what they start from.

        An epoch before them was not judged with what ships.
        """
        with self._as_kept():
            divergence = self._aware.start(self._module, ranks)
            if self.best:
                self.best.restart(self._tensors(), divergence)

    def _judge(self, ranks: Ranks) -> None:
        """Compare the weights that would be kept after this epoch with the best so far."""
        if not self.best:
            return
        # Only the first process reads the held-out samples; all must go on with the same numbers.
        with self._as_kept(), self.rounds():
            divergence = ranks.on_rank_zero(lambda: self._divergence_of(self._module))
            self.best.add(self._tensors(), divergence)

    @contextmanager
    def _as_kept(self) -> Iterator[None]:
        """The model has the weights that would be kept now, and draws nothing of the training."""
        with (
            self._average.in_place(self._tensors()) if self._average else nullcontext(),
            random_state_kept(self._device),
        ):
            yield

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and all buffers, also those that no state dict holds."""
        return {**self._parameters, **dict(self._module.named_buffers())}

    def _content(self) -> dict[str, Any]:
        """All that the next epoch starts from."""
        return {
            "losses": self.losses,
            "tensors": self._tensors(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "generator": self._generator.get_state(),
            "random": random_state(self._device),
            "average": self._average.values if self._average else None,
            "best": self.best.content() if self.best else None,
            "rounding": self._aware.content() if self._aware else None,
        }

    def _restore(self, content: Mapping[str, Any]) -> None:
        copy_into(self._tensors(), content["tensors"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._scheduler.load_state_dict(content["scheduler"])
        self._generator.set_state(content["generator"])
        set_random_state(content["random"], self._device)
        if self._average:
            copy_into(self._average.values, content["average"])
        if self.best:
            self.best.restore(content["best"])
        if self._aware:
            self._aware.restore(content["rounding"])
        self.losses = content["losses"]


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
