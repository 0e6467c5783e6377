"""The gates of a release: each compares one measurement with one threshold of the recipe."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from mfac_compress.export import LatencyComparison
from mfac_compress.pipeline.file_names import IN_8_BITS
from mfac_compress.pipeline.recipe.schema import GatesSection, MetricGates
from mfac_compress.pipeline.stages.metric import Metric, MetricDrop
from mfac_compress.pipeline.stages.validate import Measured
from mfac_compress.pipeline.statistics.per_sample import samples_needed


@dataclass(frozen=True)
class Gate:
    """One gate of the recipe, and what came of it."""

    name: str
    """The gate's key in ``validate.gates``: ``max_metric_drop``, or of a further metric
    ``further_metrics.NAME.max_metric_drop``."""
    variant: str
    """Name of the variant that it judges."""
    threshold: float
    """From the recipe."""
    measured: float | None
    """What is compared with the threshold. null: not measured, so the gate fails."""
    passed: bool
    """Whether the measurement is on the right side of the threshold."""
    reason: str
    """The comparison in words."""


@dataclass(frozen=True)
class _Comparison:
    """What a gate compares with its threshold.

    Args:
        what: In words.
        measured: None where it was not measured.
        missing: Why it was not, where that is known.
    """

    what: str
    measured: float | None
    missing: str = ""


def judge(
    gates: GatesSection,
    variant: str,
    metric: Metric,
    further: Mapping[str, Metric],
    measured: Measured,
    parameters: int,
) -> tuple[Gate, ...]:
    """Apply the gates that the recipe sets to one variant.

    Args:
        gates: Their thresholds.
        variant: Name of the variant.
        metric: What the metric is.
        further: What the further metrics are.
        measured: Of the variant. Metrics and their drops count by point or by the worse end of
            their intervals; of the latencies the worst upper end, and the gate fails where one of
            them is too noisy to judge.
        parameters: Number of all parameters of the model.

    Returns:
        One result for each gate that is set. A gate whose measurement is missing or not finite
        fails.
    """
    by_point = gates.confidence == "none"
    of_metrics = [*_judge_metric(gates, variant, metric, measured.metric, by_point)]
    for name, own in gates.further_metrics.items():
        drop = measured.further_metrics[name]
        of_metrics += [
            replace(gate, name=f"further_metrics.{name}.{gate.name}")
            for gate in _judge_metric(own, variant, further[name], drop, by_point)
        ]
    compared = {
        "min_sparsity": _Comparison("sparsity in the ONNX file", measured.sparsity),
        "min_model_sparsity": _Comparison(
            f"share of all {parameters:,} parameters that is removed", measured.model_sparsity
        ),
        "max_size_ratio": _Comparison("compressed size ratio", measured.size.ratio),
        "max_latency_ratio": _Comparison(
            "upper end of the worst latency ratio",
            _largest(one.ratio.high for one in measured.latency),
        ),
        "max_parity_error": _Comparison("parity error", measured.parity_error),
    }
    results = _judge_those_set(gates, variant, compared)
    if "max_latency_ratio" in results:
        results["max_latency_ratio"] = _unless_noisy(results["max_latency_ratio"], measured.latency)
    return (*of_metrics, *results.values())


# They say what the judged file is good for; the others must hold of whatever somebody may deploy.
_OF_THE_JUDGED_FILE = ("max_size_ratio", "max_latency_ratio")


def judge_all(
    gates: GatesSection,
    judged: str,
    metric: Metric,
    further: Mapping[str, Metric],
    shipped: Mapping[str, Measured],
    parameters: int,
) -> tuple[Gate, ...]:
    """Apply the gates to the file that ships, and those on correctness to all others beside it.

    Args:
        gates: Their thresholds.
        judged: Name of the variant to which all of them apply.
        metric: What the metric is.
        further: What the further metrics are.
        shipped: All files of the pruned model that are written, by the variant's name.
        parameters: Number of all parameters of the model.

    Returns:
        Results of the judged variant, then of the others in their order. Files in 8 bits, which
        round, have no gate on parity; the plain file in float always has it.
    """
    own = judge(gates, judged, metric, further, shipped[judged], parameters)
    of_others = [
        gate
        for name, measured in shipped.items()
        if name != judged
        for gate in judge(gates, name, metric, further, measured, parameters)
        if gate.name not in _OF_THE_JUDGED_FILE
    ]
    return tuple(
        gate
        for gate in (*own, *of_others)
        if gate.name != "max_parity_error" or gate.variant not in IN_8_BITS
    )


def passed_by_point_alone(
    gates: MetricGates, variant: str, metric: Metric, drop: MetricDrop
) -> tuple[Gate, ...]:
    """The gates on one metric that its point estimate passes and the end of its interval does not.

    Returns:
        What came of each where the interval is compared.
    """
    points = _judge_metric(gates, variant, metric, drop, by_point=True)
    ends = _judge_metric(gates, variant, metric, drop, by_point=False)
    pairs = zip(points, ends, strict=True)
    return tuple(end for point, end in pairs if point.passed and not end.passed)


def verdict_of(gates: Sequence[Gate]) -> Literal["pass", "fail", "none"]:
    """The verdict: without a gate nothing was judged."""
    if not gates:
        return "none"
    return "pass" if all(gate.passed for gate in gates) else "fail"


def _judge_metric(
    gates: MetricGates, variant: str, metric: Metric, drop: MetricDrop, by_point: bool
) -> Iterator[Gate]:
    """The gates on one metric of a variant."""
    compared = {
        "max_metric_drop": _metric_drop(metric, drop, by_point),
        "min_metric": _metric_itself("lower", metric, drop, by_point),
        "max_metric": _metric_itself("upper", metric, drop, by_point),
    }
    for name, gate in _judge_those_set(gates, variant, compared).items():
        if name == "max_metric_drop" and not by_point:
            yield _with_samples(gate, metric, drop)
        else:
            yield gate


def _judge_those_set(
    gates: MetricGates, variant: str, compared: Mapping[str, _Comparison]
) -> dict[str, Gate]:
    """Results of the gates that are set, by their names."""
    return {
        name: _judge(name, variant, threshold, comparison)
        for name, comparison in compared.items()
        if (threshold := getattr(gates, name)) is not None
    }


def is_upper_bound(name: str) -> bool:
    """Whether a gate is on the most, and not on the least, that something may be."""
    return name.rpartition(".")[2].startswith("max_")


def _judge(name: str, variant: str, threshold: float, comparison: _Comparison) -> Gate:
    """Compare; a gate's name says which side passes."""
    what, measured = comparison.what, comparison.measured
    if measured is None or not isfinite(measured):
        why = f" ({comparison.missing})" if comparison.missing else ""
        reason = f"{what} was not measured or not finite, so the gate fails{why}"
        return Gate(name, variant, threshold, None, False, reason)
    is_most = is_upper_bound(name)
    passed = measured <= threshold if is_most else measured >= threshold
    bound = "at most" if is_most else "at least"
    reason = f"{what} is {measured:.4g}, must be {bound} {threshold:g}"
    return Gate(name, variant, threshold, measured, passed, reason)


def _metric_drop(metric: Metric, drop: MetricDrop, by_point: bool) -> _Comparison:
    if by_point:
        return _Comparison(f"drop of {metric.name}", drop.drop)
    end = None if drop.drop_interval is None else drop.drop_interval[1]
    what = f"upper end of the {metric.confidence:.0%} interval of the drop of {metric.name}"
    return _Comparison(what, end, drop.method)


def _metric_itself(
    side: Literal["lower", "upper"], metric: Metric, drop: MetricDrop, by_point: bool
) -> _Comparison:
    """The file's own metric, whatever that of the dense file."""
    if by_point:
        return _Comparison(f"{metric.name} of the sparse file", drop.value)
    ends = drop.interval
    end = None if ends is None else ends[0] if side == "lower" else ends[1]
    interval = f"the {metric.confidence:.0%} interval of {metric.name} of the sparse file"
    return _Comparison(f"{side} end of {interval}", end, drop.method)


def _with_samples(gate: Gate, metric: Metric, drop: MetricDrop) -> Gate:
    """Say about how many samples would show what the recipe asks for, where they do not."""
    if gate.passed or gate.measured is None:
        return gate
    if drop.spread is None or drop.reach is None or drop.drop >= gate.threshold:
        return replace(gate, reason=f"{gate.reason}; the drop itself is {drop.drop:.4g}")
    needed = samples_needed(gate.threshold, drop.drop, drop.spread, drop.reach, metric.confidence)
    reason = (
        f"{gate.reason}; about {needed:,} samples would be needed to show a drop of at most "
        f"{gate.threshold:g}, and there are {metric.samples:,}"
    )
    return replace(gate, reason=reason)


def _unless_noisy(gate: Gate, latency: Sequence[LatencyComparison]) -> Gate:
    """Fail where the machine was too noisy to judge."""
    noisy = [str(one.workload) for one in latency if one.finding == "too noisy to judge"]
    if not noisy:
        return gate
    where = "; ".join(noisy)
    reason = f"the machine is too noisy to judge ({where}), so the gate fails; {gate.reason}"
    return replace(gate, passed=False, reason=reason)


def _largest(values: Iterable[float]) -> float | None:
    """The largest; None where there is none, or any is not finite, which ``max`` may pass over."""
    values = list(values)
    return max(values) if values and all(map(isfinite, values)) else None
