"""What whoever trusts a verdict should know, although no gate asks for it."""

from collections.abc import Iterator

from mfac_compress.pipeline.file_names import DENSE
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.verdict.report import DataResult, MetricResult, SparsityResult

LITTLE = 0.2
"""Share of all parameters that could be pruned, below which the verdict names it."""


def warnings_of(
    recipe: Recipe, metric: MetricResult, sparsity: SparsityResult, data: DataResult
) -> tuple[str, ...]:
    """Look for what makes a verdict mean less than it seems.

    Args:
        recipe: What was asked for.
        metric: Of the file that the gates apply to.
        sparsity: What was pruned, and what was not.
        data: The samples.
    Returns:
        One sentence or more for each finding.
    """
    return (*_warnings(recipe, metric, sparsity), *_of_data(data))


def _warnings(recipe: Recipe, metric: MetricResult, sparsity: SparsityResult) -> Iterator[str]:
    if metric.better_than_chance is False:
        by = (
            "by always answering the most frequent class, or drawing one"
            if metric.name == "accuracy"
            else "with the targets shuffled"
        )
        yield (
            f"{DENSE} is not shown to be better than chance: {metric.name} is "
            f"{metric.dense:.4g}, and up to {metric.chance:.4g} {by}. A model that knows nothing "
            "has nothing to lose: check the labels and the preparation of the validation data, and "
            "task.direction; validate.gates.min_metric (or max_metric) stops such a model."
        )
    if metric.assumed_range is not None and recipe.validate_.gates.confidence != "none":
        low, high = metric.assumed_range
        yield (
            "task.range is not declared, so the intervals take no sample's value to be outside of "
            f"{low:.4g} to {high:.4g}, as far as the validation samples went. Rare samples that "
            "lose more would not be noticed: declare task.range."
        )
    if sparsity.weights < LITTLE * sparsity.parameters:
        yield (
            f"Only {sparsity.weights:,} of all {sparsity.parameters:,} parameters "
            f"({sparsity.weights / sparsity.parameters:.1%}) were matched for pruning; sparsity is "
            "of these. See sparsity.left_out for the others."
        )
    if metric.resamples_left_out:
        yield (
            f"{metric.name} had no value on {metric.resamples_left_out:,} resamples of the "
            "validation samples, which were left out of its interval."
        )


def _of_data(data: DataResult) -> Iterator[str]:
    for splits, count in data.shared.items():
        yield (
            f"The splits {splits} share {count:,} samples, which data.max_overlap allows. What a "
            "model was fitted to does not judge it."
        )
    if data.unstable:
        yield (
            f"The samples of {', '.join(data.unstable)} are others at each reading, so nothing "
            "shows whether they are also in validation."
        )
    repeated = data.repeated.get("validation")
    if repeated:
        yield (
            f"{repeated:,} of {data.samples['validation']:,} validation samples repeat the input "
            "of another: the intervals count them as independent."
        )
