"""The gates of a release: each compares one measurement with one threshold of the recipe."""

from mfac_compress.pipeline.recipe.schema import GatesSection
from mfac_compress.pipeline.verdict.report import GateResult, LatencyResult, MetricResult

Measurement = float | None


def judge(
    gates: GatesSection,
    *,
    metric: MetricResult,
    sparsity: Measurement,
    size_ratio: Measurement,
    latency: tuple[LatencyResult, ...],
    parity_error: Measurement,
) -> tuple[GateResult, ...]:
    """Apply the gates that the recipe sets.

    Args:
        gates: Their thresholds.
        metric: Its drop, by point or by the upper end of its interval.
        sparsity: Counted in the ONNX file.
        size_ratio: Compressed sparse / compressed dense.
        latency: Of each batch size and number of threads; the worst upper end counts. The gate
            fails where one of them is too noisy to judge.
        parity_error: Largest difference from PyTorch.

    Returns:
        One result for each gate that is set. A gate whose measurement is missing fails.
    """
    by_point = gates.confidence == "none"
    drop = metric.drop if by_point else metric.interval[1]
    end = "" if by_point else f"upper end of the {metric.confidence:.0%} interval of the "
    results = (
        _at_most("max_metric_drop", f"{end}drop of {metric.name}", gates.max_metric_drop, drop),
        _at_least("min_sparsity", "sparsity in the ONNX file", gates.min_sparsity, sparsity),
        _at_most("max_size_ratio", "compressed size ratio", gates.max_size_ratio, size_ratio),
        _max_latency_ratio(gates.max_latency_ratio, latency),
        _at_most("max_parity_error", "parity error", gates.max_parity_error, parity_error),
    )
    return tuple(result for result in results if result is not None)


def _max_latency_ratio(
    threshold: float | None, latency: tuple[LatencyResult, ...]
) -> GateResult | None:
    slowest = max((result.interval[1] for result in latency), default=None)
    what = "upper end of the worst latency ratio"
    result = _at_most("max_latency_ratio", what, threshold, slowest)
    noisy = [one for one in latency if one.finding == "too noisy to judge"]
    if result is None or not noisy:
        return result
    where = ", ".join(f"batch {one.batch_size}, threads: {one.threads}" for one in noisy)
    reason = f"the machine is too noisy to judge ({where}), so the gate fails; {result.reason}"
    return result.model_copy(update={"passed": False, "reason": reason})


def _at_most(
    name: str, what: str, threshold: float | None, measured: Measurement
) -> GateResult | None:
    passed = None not in (threshold, measured) and measured <= threshold
    return _result(name, what, "at most", threshold, measured, passed)


def _at_least(
    name: str, what: str, threshold: float | None, measured: Measurement
) -> GateResult | None:
    passed = None not in (threshold, measured) and measured >= threshold
    return _result(name, what, "at least", threshold, measured, passed)


def _result(
    name: str,
    what: str,
    bound: str,
    threshold: float | None,
    measured: Measurement,
    passed: bool,
) -> GateResult | None:
    """The gate in words; None where it is not set."""
    if threshold is None:
        return None
    if measured is None:
        reason = f"{what} was not measured or not finite, so the gate fails"
    else:
        reason = f"{what} is {measured:.4g}, must be {bound} {threshold:g}"
    return GateResult(
        name=name, threshold=threshold, measured=measured, passed=passed, reason=reason
    )
