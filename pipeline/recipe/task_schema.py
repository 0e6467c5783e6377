"""The section of a recipe that says what the model is for: task."""

from collections.abc import Iterator
from math import inf
from typing import Literal

from mfac_compress.pipeline.recipe.section import CallableName, Number, Section, Text
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource


class TaskSection(Section):
    """What the model is trained for and judged by."""

    loss: Literal["cross_entropy", "mse"] | CallableName = "cross_entropy"
    """`cross_entropy` (targets of -100 are ignored), `mse`, or `module:callable` of (outputs,
    targets) -> mean loss."""
    metric: Literal["accuracy"] | CallableName = "accuracy"
    """`accuracy`, or `module:callable` of (outputs, targets) -> one value per sample `[n]`, or
    one number for the whole set. Where a sample has several targets, its accuracy is the share of
    them that is right, those of -100 left out."""
    target: Text = "labels"
    """Name of the target where an item of the data is one dict."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Whether more of the metric is better."""
    range: tuple[Number, Number] | None = None
    """`[low, high]`: least and greatest value that the metric can have, for one sample where it has
    values per sample. The interval of its drop rests on it; without it, on the values met, which
    show nothing of rarer and larger ones. Accuracy's is [0, 1]."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        if self.metric == "accuracy" and self.direction == "minimize":
            yield RecipeIssue(
                ("direction",), "must be maximize where task.metric is accuracy. Got minimize."
            )
        if self.range is None:
            return
        low, high = self.range
        if self.metric == "accuracy":
            yield RecipeIssue(
                ("range",),
                "must be left out where task.metric is accuracy, whose range is [0, 1]. "
                f"Got [{low:g}, {high:g}].",
            )
        elif not 0 < high - low < inf:
            yield RecipeIssue(
                ("range",),
                "must be [low, high] with low below high, and a finite distance. "
                f"Got [{low:g}, {high:g}].",
            )
