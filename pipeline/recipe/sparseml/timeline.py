"""When a SparseML recipe prunes and trains, in epochs and in steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mfac_compress.pipeline.recipe.sparseml.document import Modifier

_TRAINING = (
    "EpochRangeModifier",
    "LearningRateFunctionModifier",
    "LearningRateModifier",
    "SetLearningRateModifier",
)


@dataclass(frozen=True)
class Timeline:
    """The course of a recipe.

    Args:
        start: Epoch of the first pruning step.
        end: Epoch of the last one.
        every: Epochs from one step to the next.
        total: Epoch at which training ends.
        one_shot: Whether nothing is trained: the recipe has one step, and no word on training.
    """

    start: float
    end: float
    every: float
    total: float
    one_shot: bool

    @property
    def steps(self) -> int:
        """Number of pruning steps, the first at ``start`` and the last at ``end``."""
        if self.one_shot or self.end <= self.start:
            return 1
        # A step each 0.1 of 4 epochs is 41: rounding must not make it 42.
        return math.ceil((self.end - self.start) / self.epochs_between - 1e-6) + 1

    @property
    def epochs_between(self) -> int:
        """Whole epochs between two steps, at least one: training is counted in them here."""
        return 0 if self.one_shot or self.end <= self.start else max(1, round(self.every))

    @property
    def is_exact(self) -> bool:
        """Whether the steps are where SparseML has them."""
        return self.one_shot or self.end <= self.start or self.epochs_between == self.every

    @property
    def is_even(self) -> bool:
        """Whether the last step is as far from the one before it as all others."""
        steps = (self.end - self.start) / self.every if self.every > 0 else 0.0
        return self.is_exact and abs(steps - round(steps)) < 1e-6

    @property
    def epochs_after(self) -> int:
        """Whole epochs after the last step."""
        return 0 if self.one_shot else math.ceil(max(0.0, self.total - self.end) - 1e-6)


def timeline_of(pruning: Modifier, all_modifiers: Sequence[Modifier]) -> Timeline:
    """Work out when things happen.

    Args:
        pruning: The modifier that prunes.
        all_modifiers: Of the recipe, it among them.
    """
    values = pruning.values
    start, every = max(0.0, values["start_epoch"]), values["update_frequency"]
    end = max(start, values["end_epoch"])
    trains = any(modifier.name in _TRAINING for modifier in all_modifiers)
    ends = [modifier.values.get("end_epoch") for modifier in all_modifiers]
    total = max([end, *(last for last in ends if isinstance(last, int | float))])
    return Timeline(start, end, every, total, one_shot=not trains and end - start <= abs(every))
