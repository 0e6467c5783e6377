"""How far a model's outputs are from the dense model's: by this, stages make their choices.

Measured on held-out calibration samples, without labels. The labelled loss on the same samples is
no guide at high sparsity: a repaired model that is right more often can have a higher loss, since
it is less sure of itself.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Batch, Tree, call, named_tensors
from mfac_compress.mfac.divergence import kl_divergence
from mfac_compress.mfac.labels import IGNORED
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.model_file import set_training

_BATCH = 256
_MOST_KEPT = 1 << 26  # elements of the dense model's outputs, beyond which they are computed anew


def is_nearer(after: float, before: float) -> bool:
    """Whether a divergence is less than another; one that is not finite is more than any number.

    So a change that makes outputs finite again is kept, and none that leaves NaN or infinity is.
    """
    return math.isfinite(after) and not before <= after


def reported(divergence: float) -> float | None:
    """A divergence as reports say it: JSON knows neither NaN nor infinity, so these are None."""
    return divergence if math.isfinite(divergence) else None


@dataclass
class _Sums:
    """Of one output tensor, in float64.

    Args:
        squared: Of the differences.
        first: Of the dense model's values.
        second: Of their squares.
        count: Number of values.
    """

    squared: float = 0.0
    first: float = 0.0
    second: float = 0.0
    count: int = 0

    def add(self, outputs: Tensor, wanted: Tensor) -> None:
        """Count the values of one batch, and those of the dense model."""
        self.squared += (outputs - wanted).square().sum().item()
        self.first += wanted.sum().item()
        self.second += wanted.square().sum().item()
        self.count += wanted.numel()

    @property
    def relative(self) -> float:
        """Mean squared difference in units of the variance of the dense model's values."""
        mean = self.first / self.count
        variance = self.second / self.count - mean**2
        return self.squared / self.count / (variance if variance > 0 else 1.0)


@dataclass
class Divergence:
    """Compares models with the dense one; its outputs are computed once.

    For classes (``task.loss: cross_entropy``) the measure is the mean Kullback-Leibler divergence
    KL(dense ‖ model) of the predicted distributions. For any other outputs it is the mean squared
    difference in units of the variance of the dense model's outputs, summed over the tensors.

    Args:
        dense: The dense model.
        calibration: Has the samples.
        most: Number of them beyond which the others are left out; None for all.
        temperature: By which logits are divided before the Kullback-Leibler divergence. A dense
            model that was trained on the held-out samples is nearly certain of their classes: at 1
            the divergence then measures little but how certain the other model is.
    """

    dense: nn.Module
    calibration: CalibrationData
    most: int | None = None
    temperature: float = 1.0
    _kept: list[list[Tensor]] = field(default_factory=list, init=False, repr=False)
    _room: int = field(default=_MOST_KEPT, init=False, repr=False)

    @torch.no_grad()
    def of(self, module: nn.Module) -> float:
        """The divergence of a model of the same outputs, in evaluation mode; 0 for the dense one.

        NaN or infinity where the model's outputs are not finite.
        """
        set_training(module, False)
        if self.calibration.predicts_classes:
            return self._kullback_leibler(module)
        sums: list[_Sums] = []
        for _, outputs, wanted in self._pairs(module):
            sums = sums or [_Sums() for _ in wanted]
            for each, y, target in zip(sums, outputs, wanted, strict=True):
                each.add(y.double(), target.double())
        return sum(each.relative for each in sums if each.count)

    def _kullback_leibler(self, module: nn.Module) -> float:
        total, count = 0.0, 0
        for batch, (logits,), (wanted,) in self._pairs(module):
            softened = (tensor.double() / self.temperature for tensor in (wanted, logits))
            terms = kl_divergence(*softened, axis=1)
            if isinstance(batch.targets, Tensor) and batch.targets.shape == terms.shape:
                terms = terms[batch.targets != IGNORED]  # padding
            total, count = total + terms.sum().item(), count + terms.numel()
        return total / max(count, 1)

    def _pairs(self, module: nn.Module) -> Iterator[tuple[Batch, list[Tensor], list[Tensor]]]:
        """Held-out batches, the model's outputs on them, and the dense model's."""
        calibration = self.calibration
        held = calibration.split.by_length(calibration.draws.holdout[: self.most])
        for number, batch in enumerate(calibration.batches(_BATCH, held)):
            outputs = _floats(call(module, batch.inputs))
            yield batch, outputs, self._dense_outputs(number, batch.inputs)

    def _dense_outputs(self, number: int, inputs: Tree) -> list[Tensor]:
        if number < len(self._kept):
            return self._kept[number]
        outputs = _floats(call(self.dense, inputs))
        self._room -= sum(output.numel() for output in outputs)
        if self._room >= 0 and number == len(self._kept):
            self._kept.append(outputs)
        return outputs


def _floats(outputs: Tree) -> list[Tensor]:
    """The tensors of a model's outputs that can be compared; positions and the like are not."""
    return [x for _, x in named_tensors(outputs) if x.is_floating_point()]
