"""What whoever trusts a verdict should know, although no gate asks for it."""

from collections.abc import Iterator

from mfac_compress.pipeline.file_names import DENSE, INT8, ONNX_FILES
from mfac_compress.pipeline.inputs.code_sources import CHANGED
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.metric import Metric, MetricDrop
from mfac_compress.pipeline.stages.quantize import Quantised
from mfac_compress.pipeline.verdict.gates import passed_by_point_alone
from mfac_compress.pipeline.verdict.inputs import Code, Data, Sparsity

LITTLE = 0.2
"""Share of all parameters that could be pruned, below which the verdict names it."""

_MOSTLY = 0.8
"""Share of the layers' weights in 8 bits, below which the verdict names it."""


def warnings_of(
    recipe: Recipe,
    metric: Metric,
    dense: MetricDrop,
    judged: MetricDrop,
    sparsity: Sparsity,
    quantised: Quantised | None,
    data: Data,
    code: Code,
) -> tuple[str, ...]:
    """Look for what makes a verdict mean less than it seems.

    Args:
        recipe: What was asked for.
        metric: What the metric is.
        dense: That of the dense file.
        judged: That of the file to which the gates apply.
        sparsity: What was pruned, and what was not.
        quantised: What is in 8 bits; None where nothing was to be.
        data: The samples.
        code: The user's code.
    Returns:
        One sentence or more for each finding.
    """
    return (
        *warnings_of_metric(recipe, "task", metric, dense, judged),
        *_of_sparsity(sparsity),
        *(() if quantised is None else _of_precision(quantised)),
        *_of_data(data),
        *_of_training(recipe),
        *_of_code(code),
    )


def warnings_of_metric(
    recipe: Recipe, section: str, metric: Metric, dense: MetricDrop, judged: MetricDrop
) -> Iterator[str]:
    """Look for what makes gates on one metric mean less than they seem.

    Args:
        recipe: What was asked for.
        section: Key of the metric's section in the recipe: ``task``, or of a further one.
        metric: What the metric is.
        dense: That of the dense file.
        judged: That of the file to which the gates apply.
    """
    yield from _of_chance(section, metric, dense)
    yield from _of_intervals(recipe, section, metric, judged)
    yield from _of_points(recipe, section, metric, judged)


def _of_chance(section: str, metric: Metric, dense: MetricDrop) -> Iterator[str]:
    if metric.better_than_chance is not False:
        return
    gates = _gates_key(section)
    if metric.takes_targets is False:
        if section == "task":
            yield (
                f"Shuffled targets leave {metric.name} of {ONNX_FILES[DENSE]} as it is, "
                f"{dense.value:.4g}: either it takes no target, as a likelihood of the samples "
                "does, or the model answers all samples alike and has nothing to lose. "
                f"{gates}.min_metric (or max_metric) stops such a model."
            )
        return
    by = (
        "by always answering the most frequent class, or drawing one"
        if metric.name == "accuracy"
        else "with the targets shuffled"
    )
    yield (
        f"{ONNX_FILES[DENSE]} is not shown to be better than chance: {metric.name} is "
        f"{dense.value:.4g}, and up to {metric.chance:.4g} {by}. A model that knows nothing "
        "has nothing to lose: check the labels and the preparation of the validation data, and "
        f"{section}.direction; {gates}.min_metric (or max_metric) stops such a model."
    )


def _of_intervals(recipe: Recipe, section: str, metric: Metric, drop: MetricDrop) -> Iterator[str]:
    if drop.assumed_range is not None and recipe.validate_.gates.confidence != "none":
        low, high = drop.assumed_range
        yield (
            f"{section}.range is not declared, so the intervals take no sample's value to be "
            f"outside of {low:.4g} to {high:.4g}, as far as the validation samples went. Rare "
            f"samples that lose more would not be noticed: declare {section}.range."
        )
    if drop.resamples_left_out:
        yield (
            f"{metric.name} had no value on {drop.resamples_left_out:,} resamples of the "
            "validation samples, which were left out of its interval."
        )


def _of_points(recipe: Recipe, section: str, metric: Metric, drop: MetricDrop) -> Iterator[str]:
    gates = recipe.validate_.gates
    if gates.confidence != "none":
        return
    name = section.removeprefix("task").removeprefix(".further_metrics.")
    own = gates.further_metrics.get(name) if name else gates
    if own is None:
        return
    for gate in passed_by_point_alone(own, "", metric, drop):
        why = f"no interval: {drop.method}" if gate.measured is None else gate.reason
        yield (
            f"{_gates_key(section)}.{gate.name} passes because validate.gates.confidence is none. "
            f"{metric.samples:,} validation samples do not show that it holds ({why})."
        )


def _gates_key(section: str) -> str:
    """The recipe key of the gates on the metric of a section."""
    return section.replace("task", "validate.gates", 1)


def _of_sparsity(sparsity: Sparsity) -> Iterator[str]:
    if sparsity.share < LITTLE:
        yield (
            f"Only {sparsity.weights:,} of all {sparsity.parameters:,} parameters "
            f"({sparsity.share:.1%}) were matched for pruning; sparsity is "
            "of these. See sparsity.left_out for the others."
        )


def _of_precision(quantised: Quantised) -> Iterator[str]:
    if quantised.share < _MOSTLY:
        yield (
            f"Only {quantised.share:.1%} of the layers' weights are in 8 bits in "
            f"{ONNX_FILES[INT8]}: the other layers cost more than quantize.max_divergence allows."
        )


def _of_data(data: Data) -> Iterator[str]:
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


def _of_training(recipe: Recipe) -> Iterator[str]:
    if recipe.prune.method == "given":
        yield (
            f"The weights of {recipe.prune.weights} were trained outside of this run. No run can "
            "see whether validation samples were among what they were trained on, or chosen by."
        )


def _of_code(code: Code) -> Iterator[str]:
    changed = [path for path, digest in code.files.items() if digest == CHANGED]
    if changed:
        yield (
            f"{', '.join(changed)} changed during the run, which may have used it as it was before "
            "and after. Run again without changing it: what was made meanwhile is made anew."
        )
