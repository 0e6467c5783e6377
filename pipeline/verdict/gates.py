"""The gates of a release: each compares one measurement with one threshold of the recipe."""

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Literal

from mfac_compress.pipeline.recipe.schema import GatesSection
from mfac_compress.pipeline.verdict.report import (
    GateResult,
    LatencyResult,
    MetricResult,
    SparsityResult,
)
from mfac_compress.pipeline.verdict.statistics import samples_needed

Measurement = float | None


def judge(
    gates: GatesSection,
    *,
    metric: MetricResult,
    sparsity: SparsityResult,
    size_ratio: Measurement,
    latency: tuple[LatencyResult, ...],
    parity_error: Measurement,
) -> tuple[GateResult, ...]:
    """Apply the gates that the recipe sets.

    Args:
        gates: Their thresholds.
        metric: It and its drop, by point or by the worse end of their intervals.
        sparsity: Counted in the ONNX file.
        size_ratio: Compressed sparse / compressed dense.
        latency: Of each batch size and number of threads; the worst upper end counts. The gate
            fails where one of them is too noisy to judge.
        parity_error: Largest difference from PyTorch.

    Returns:
        One result for each gate that is set. A gate whose measurement is missing or not finite
        fails.
    """
    results = (
        _metric_drop(gates, metric),
        _metric_itself("min_metric", gates, metric),
        _metric_itself("max_metric", gates, metric),
        _at_least("min_sparsity", "sparsity in the ONNX file", gates.min_sparsity, sparsity.onnx),
        _at_least(
            "min_model_sparsity",
            f"share of all {sparsity.parameters:,} parameters that is removed",
            gates.min_model_sparsity,
            sparsity.model,
        ),
        _at_most("max_size_ratio", "compressed size ratio", gates.max_size_ratio, size_ratio),
        _max_latency_ratio(gates.max_latency_ratio, latency),
        _at_most("max_parity_error", "parity error", gates.max_parity_error, parity_error),
    )
    return tuple(result for result in results if result is not None)


def verdict_of(gates: Sequence[GateResult]) -> Literal["pass", "fail", "none"]:
    """The verdict: without a gate nothing was judged."""
    if not gates:
        return "none"
    return "pass" if all(gate.passed for gate in gates) else "fail"


def _metric_drop(gates: GatesSection, metric: MetricResult) -> GateResult | None:
    """The drop, and about how many samples would show what the recipe asks for."""
    threshold = gates.max_metric_drop
    if gates.confidence == "none":
        return _at_most("max_metric_drop", f"drop of {metric.name}", threshold, metric.drop)
    end = None if metric.interval is None else metric.interval[1]
    what = f"upper end of the {metric.confidence:.0%} interval of the drop of {metric.name}"
    result = _at_most("max_metric_drop", what, threshold, end, missing=metric.method)
    if result is None or result.passed or end is None:
        return result
    return result.model_copy(update={"reason": f"{result.reason}; {_needed(metric, threshold)}"})


def _needed(metric: MetricResult, threshold: float) -> str:
    if metric.spread is None or metric.reach is None or metric.drop >= threshold:
        return f"the drop itself is {metric.drop:.4g}"
    needed = samples_needed(threshold, metric.drop, metric.spread, metric.reach, metric.confidence)
    return (
        f"about {needed:,} samples would be needed to show a drop of at most {threshold:g}, and "
        f"there are {metric.samples:,}"
    )


def _metric_itself(
    name: Literal["min_metric", "max_metric"], gates: GatesSection, metric: MetricResult
) -> GateResult | None:
    """The sparse file's metric, whatever that of the dense file."""
    side, compare = (0, _at_least) if name == "min_metric" else (1, _at_most)
    threshold: float | None = getattr(gates, name)
    if gates.confidence == "none":
        return compare(name, f"{metric.name} of the sparse file", threshold, metric.sparse)
    end = None if metric.sparse_interval is None else metric.sparse_interval[side]
    what = (
        f"{('lower', 'upper')[side]} end of the {metric.confidence:.0%} interval of {metric.name} "
        "of the sparse file"
    )
    return compare(name, what, threshold, end, missing=metric.method)


def _max_latency_ratio(
    threshold: float | None, latency: tuple[LatencyResult, ...]
) -> GateResult | None:
    slowest = _largest([result.interval[1] for result in latency])
    what = "upper end of the worst latency ratio"
    result = _at_most("max_latency_ratio", what, threshold, slowest)
    noisy = [one for one in latency if one.finding == "too noisy to judge"]
    if result is None or not noisy:
        return result
    where = ", ".join(f"batch {one.batch_size}, threads: {one.threads}" for one in noisy)
    reason = f"the machine is too noisy to judge ({where}), so the gate fails; {result.reason}"
    return result.model_copy(update={"passed": False, "reason": reason})


def _largest(values: Iterable[float]) -> Measurement:
    """The largest; None where there is none, or any is not finite, which ``max`` may pass over."""
    values = list(values)
    return max(values) if values and all(map(isfinite, values)) else None


def _at_most(
    name: str, what: str, threshold: float | None, measured: Measurement, missing: str = ""
) -> GateResult | None:
    measured = _finite(measured)
    passed = None not in (threshold, measured) and measured <= threshold
    return _result(name, what, "at most", threshold, measured, passed, missing)


def _at_least(
    name: str, what: str, threshold: float | None, measured: Measurement, missing: str = ""
) -> GateResult | None:
    measured = _finite(measured)
    passed = None not in (threshold, measured) and measured >= threshold
    return _result(name, what, "at least", threshold, measured, passed, missing)


def _finite(measured: Measurement) -> Measurement:
    return measured if measured is not None and isfinite(measured) else None


def _result(
    name: str,
    what: str,
    bound: str,
    threshold: float | None,
    measured: Measurement,
    passed: bool,
    missing: str,
) -> GateResult | None:
    """The gate in words; None where it is not set."""
    if threshold is None:
        return None
    if measured is None:
        why = f" ({missing})" if missing else ""
        reason = f"{what} was not measured or not finite, so the gate fails{why}"
    else:
        reason = f"{what} is {measured:.4g}, must be {bound} {threshold:g}"
    return GateResult(
        name=name, threshold=threshold, measured=measured, passed=passed, reason=reason
    )
