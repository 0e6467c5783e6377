"""Each gate compares the right number, and never passes without one."""

from dataclasses import replace

import pytest

from mfac_compress.export import FileSize, Interval, LatencyComparison, Spread, Timing, Workload
from mfac_compress.pipeline.recipe.schema import GatesSection
from mfac_compress.pipeline.stages.metric import Metric, MetricDrop
from mfac_compress.pipeline.stages.validate import Measured
from mfac_compress.pipeline.verdict.gates import judge, judge_all, verdict_of

METRIC = Metric(
    name="accuracy",
    direction="maximize",
    range=(0.0, 1.0),
    samples=1000,
    confidence=0.95,
    chance=0.1,
    better_than_chance=True,
)
DROP = MetricDrop(
    value=0.89,
    interval=(0.86, 0.91),
    drop=0.01,
    drop_interval=(0.0, 0.02),
    method="how",
    assumed_range=None,
    spread=0.1,
    reach=1.0,
    resamples_left_out=0,
)


def _latency(batch_size, ratio, high):
    timing = Timing(wall=Spread(1, 0), cpu=Spread(1, 0))
    return LatencyComparison(
        reference="dense",
        workload=Workload(batch_size, 1),
        rounds=10,
        runs=10,
        calls_per_run=1,
        reference_time=timing,
        time=timing,
        clock="thread CPU",
        ratio=Interval(ratio, 0.1, high),
        finding="faster",
        verdict="",
    )


MEASURED = Measured(
    file="model.onnx",
    made_from=None,
    metric=DROP,
    size=FileSize(100, 30, ratio=0.3, library_bytes=0),
    sparsity=0.8,
    model_sparsity=0.08,
    parity_error=1e-5,
    audit=(),
    latency=(_latency(1, 0.5, 0.6), _latency(16, 0.4, 0.9)),
)


def _metric(**changes):
    return {"metric": replace(DROP, **changes)}


def _size(ratio):
    return {"size": replace(MEASURED.size, ratio=ratio)}


def _judge(measured=None, **gates):
    changed = replace(MEASURED, **(measured or {}))
    return judge(GatesSection(**gates), "sparse", METRIC, {}, changed, parameters=1000)


@pytest.mark.parametrize(
    ("gate", "measured"),
    [
        ("max_metric_drop", 0.02),
        ("max_size_ratio", 0.3),
        ("max_latency_ratio", 0.9),
        ("max_parity_error", 1e-5),
    ],
)
def test_upper_bounds(gate, measured):
    for threshold, passed in [(measured, True), (measured * 1.01, True), (measured * 0.99, False)]:
        (result,) = _judge(**{gate: threshold})
        assert (result.name, result.measured, result.passed) == (gate, measured, passed)
        assert result.variant == "sparse"


def test_the_lower_bound_of_sparsity():
    for threshold, passed in [(0.8, True), (0.79, True), (0.81, False)]:
        (result,) = _judge(min_sparsity=threshold)
        assert result.passed is passed


def test_without_confidence_the_point_estimate_counts():
    (result,) = _judge(max_metric_drop=0.015, confidence="none")
    assert result.passed
    assert result.measured == 0.01


def test_a_latency_that_is_too_noisy_to_judge_fails_and_says_so():
    noisy = replace(_latency(16, 0.9, 1.3), finding="too noisy to judge")
    (result,) = _judge({"latency": (_latency(1, 0.5, 0.6), noisy)}, max_latency_ratio=2)
    assert not result.passed
    assert result.measured == 1.3
    assert "too noisy to judge (batch 16, 1 thread)" in result.reason


@pytest.mark.parametrize(
    ("gate", "missing"),
    [
        ("max_metric_drop", _metric(drop_interval=None)),
        ("min_metric", _metric(interval=None)),
        ("max_metric", _metric(interval=None)),
        ("min_sparsity", {"sparsity": None}),
        ("min_model_sparsity", {"model_sparsity": None}),
        ("max_size_ratio", _size(None)),
        ("max_latency_ratio", {"latency": ()}),
        ("max_parity_error", {"parity_error": None}),
    ],
)
def test_a_missing_measurement_fails(gate, missing):
    (result,) = _judge(missing, **{gate: 0.5})
    assert (result.passed, result.measured) == (False, None)
    assert "not measured" in result.reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("confidence", [0.95, "none"])
def test_a_measurement_that_is_not_finite_fails(bad, confidence):
    measured = {
        **_metric(drop=bad, value=bad, drop_interval=(bad, bad), interval=(bad, bad)),
        **_size(bad),
        "sparsity": bad,
        "model_sparsity": bad,
        "parity_error": bad,
    }
    gates = {
        "max_metric_drop": 1e300,
        "min_metric": -1e300,
        "max_metric": 1e300,
        "min_sparsity": 0.0,
        "min_model_sparsity": 0.0,
        "max_size_ratio": 1e300,
        "max_parity_error": 1e300,
        "max_latency_ratio": 1e300,
    }
    for latency in ((_latency(1, 0.5, 0.6), _latency(16, 0.5, bad)), (_latency(1, 0.5, bad),) * 2):
        results = _judge(measured | {"latency": latency}, **gates, confidence=confidence)
        assert len(results) == len(gates)
        assert [result.name for result in results if result.passed] == []


def test_no_gate_is_no_verdict():
    assert verdict_of(()) == "none"
    assert verdict_of(_judge(min_sparsity=0.1)) == "pass"
    assert verdict_of(_judge(min_sparsity=0.1, max_size_ratio=0.1)) == "fail"


def test_the_metric_itself_is_judged_by_the_worse_end():
    for name, measured, passes, fails in (
        ("min_metric", 0.86, 0.86, 0.87),
        ("max_metric", 0.91, 0.91, 0.90),
    ):
        for threshold, passed in ((passes, True), (fails, False)):
            (result,) = _judge(**{name: threshold})
            assert (result.measured, result.passed) == (measured, passed)
            assert "interval of accuracy of the sparse file" in result.reason
        (by_point,) = _judge(**{name: 0.89}, confidence="none")
        assert (by_point.measured, by_point.passed) == (0.89, True)


def test_sparsity_of_the_model_is_a_gate_of_its_own():
    for threshold, passed in ((0.08, True), (0.081, False)):
        (result,) = _judge(min_model_sparsity=threshold)
        assert result.passed is passed
        assert "all 1,000 parameters" in result.reason


def test_a_failed_drop_says_how_many_samples_it_takes():
    (result,) = _judge(max_metric_drop=0.015)
    assert "about 2,100 samples would be needed" in result.reason
    assert "there are 1,000" in result.reason
    (passed,) = _judge(max_metric_drop=0.02)
    assert "samples would be needed" not in passed.reason
    (hopeless,) = _judge(max_metric_drop=0.01)
    assert "the drop itself is 0.01" in hopeless.reason


def test_a_missing_interval_says_why():
    (result,) = _judge(_metric(drop_interval=None, method="none: because"), max_metric_drop=1)
    assert "none: because" in result.reason


def test_a_threshold_of_zero_is_a_gate():
    (result,) = _judge(max_metric_drop=0.0)
    assert not result.passed


def test_gates_that_are_not_set_are_not_judged():
    assert _judge() == ()


ERROR = replace(METRIC, name="own.py:error", direction="minimize")
ERRORS = replace(DROP, value=0.3, interval=(0.2, 0.5), drop=0.1, drop_interval=(-0.1, 0.4))


def _judge_error(errors=ERRORS, **gates):
    measured = replace(MEASURED, further_metrics={"error": errors})
    return judge(GatesSection(**gates), "sparse", METRIC, {"error": ERROR}, measured, 1000)


@pytest.mark.parametrize(
    ("gate", "worse_end", "point"),
    [("max_metric_drop", 0.4, 0.1), ("max_metric", 0.5, 0.3), ("min_metric", 0.2, 0.3)],
)
def test_further_metrics_are_judged_as_the_first_is(gate, worse_end, point):
    better = -1e-9 if gate.startswith("min_") else 1e-9
    for confidence, measured in ((0.95, worse_end), ("none", point)):
        for threshold, passed in ((measured + better, True), (measured - better, False)):
            of_error = {"error": {gate: threshold}}
            (result,) = _judge_error(further_metrics=of_error, confidence=confidence)
            assert result.name == f"further_metrics.error.{gate}"
            assert (result.measured, result.passed) == (measured, passed)
            assert "own.py:error" in result.reason
            assert f"must be at {'least' if gate.startswith('min_') else 'most'}" in result.reason


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_a_further_metric_without_a_finite_interval_fails(bad):
    ends = None if bad is None else (bad, bad)
    errors = replace(ERRORS, interval=ends, drop_interval=ends, method="none: because")
    of_error = {"max_metric_drop": 1e300, "min_metric": -1e300, "max_metric": 1e300}
    results = _judge_error(errors, further_metrics={"error": of_error})
    assert [(result.measured, result.passed) for result in results] == [(None, False)] * 3
    assert all("none: because" in result.reason for result in results)


def test_each_metric_has_the_gates_that_are_set_for_it():
    results = _judge_error(max_metric_drop=0.02, further_metrics={"error": {}})
    assert [result.name for result in results] == ["max_metric_drop"]
    of_error = {"error": {"max_metric_drop": 0.3}}
    first, second = _judge_error(max_metric_drop=0.02, further_metrics=of_error)
    assert (first.passed, second.passed) == (True, False)
    assert "samples would be needed" in second.reason


def test_further_metrics_are_judged_on_every_file():
    good = replace(ERRORS, drop_interval=(-0.1, 0.0))
    shipped = {
        "int8": replace(MEASURED, further_metrics={"error": good}),
        "sparse": replace(MEASURED, further_metrics={"error": ERRORS}),
    }
    gates = GatesSection(
        max_size_ratio=0.5, further_metrics={"error": {"max_metric_drop": 0.2, "max_metric": 1}}
    )
    results = judge_all(gates, "int8", METRIC, {"error": ERROR}, shipped, parameters=1000)
    assert [(one.name.removeprefix("further_metrics."), one.variant) for one in results] == [
        ("error.max_metric_drop", "int8"),
        ("error.max_metric", "int8"),
        ("max_size_ratio", "int8"),
        ("error.max_metric_drop", "sparse"),
        ("error.max_metric", "sparse"),
    ]
    assert [one.passed for one in results] == [True, True, True, False, True]
