"""The recipe's ``task`` section: the loss and the metrics."""

import re
from collections.abc import Iterator
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mfac_compress.pipeline.recipe.section import (
    CallableName,
    Number,
    Section,
    SectionError,
    Text,
)
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource

RANGES = {"accuracy": (0.0, 1.0), "spearman": (-1.0, 1.0), "spearman_cosine": (-1.0, 1.0)}
"""Least and greatest value of each built-in metric, of all of which more is better."""

MetricFunction = Literal["accuracy", "spearman", "spearman_cosine"] | CallableName


def _metric_name(name: Any) -> str:
    """Check a name that stands in tables and, between dots, in the names of gates."""
    if isinstance(name, str) and re.fullmatch(r"[^\W\d]\w{,39}", name):
        return name
    text = (
        "must be a name of letters, digits and _, at most 40 of them, that does not start with a "
        f"digit. Got {name!r}."
    )
    raise SectionError((RecipeIssue((), text),))


MetricName = Annotated[str, BeforeValidator(_metric_name)]
MOST_METRICS = 100
"""Each is computed thousands of times for its intervals."""


class MetricSection(Section):
    """A metric that files are judged by."""

    metric: MetricFunction
    """As `task.metric`."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Whether more of the metric is better."""
    range: tuple[Number, Number] | None = None
    """`[low, high]`: least and greatest value that the metric can have, for one sample where it has
    values per sample. The interval of its drop rests on it; without it, on the values met, which
    show nothing of rarer and larger ones. That of built-in metrics is known."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        own = RANGES.get(self.metric)
        if own and self.direction == "minimize":
            yield RecipeIssue(
                ("direction",),
                f"must be maximize where the metric is {self.metric}. Got minimize.",
            )
        if self.range is None:
            return
        low, high = self.range
        if own:
            yield RecipeIssue(
                ("range",),
                f"must be left out where the metric is {self.metric}, whose range is "
                f"[{own[0]:g}, {own[1]:g}]. Got [{low:g}, {high:g}].",
            )
        elif not 0 < high - low < inf:
            yield RecipeIssue(
                ("range",),
                "must be [low, high] with low below high, and a finite distance. "
                f"Got [{low:g}, {high:g}].",
            )


class TaskSection(MetricSection):
    """What the model is trained for and judged by."""

    loss: Literal["cross_entropy", "mse", "none"] | CallableName = "cross_entropy"
    """`cross_entropy` (targets of -100 are ignored), `mse`, or `module:callable` of (outputs,
    targets) -> mean loss. `none`: for embeddings, which are calibrated without labels."""
    metric: MetricFunction = "accuracy"
    """`accuracy`, `spearman`, `spearman_cosine`, or `module:callable` of (outputs, targets) -> one
    value per sample `[n]`, or one number for the whole set. Where a sample has several targets, its
    accuracy is the share of them that is right, those of -100 left out. `spearman`: rank
    correlation of scores `[n]` with the targets; `spearman_cosine`: of the cosines of embeddings
    `[n, d]` of pairs, samples 0 and 1, 2 and 3, ..."""
    target: Text = "labels"
    """Name of the target where an item of the data is one dict."""
    further_metrics: Annotated[dict[MetricName, MetricSection], Field(max_length=MOST_METRICS)] = (
        Field(default_factory=dict)
    )
    """More metrics of the same outputs, by names of your choice: `{error: {metric:
    metrics.py:error, direction: minimize}}`. All are reported, and those that
    `validate.gates.further_metrics` names have gates."""
