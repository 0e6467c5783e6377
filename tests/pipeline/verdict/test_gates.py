"""Each gate compares the right number, and never passes without one."""

import pytest

from mfac_compress.pipeline.recipe.schema import GatesSection
from mfac_compress.pipeline.verdict.gates import judge, verdict_of
from mfac_compress.pipeline.verdict.report import (
    LatencyResult,
    MetricResult,
    SparsityResult,
    SpreadResult,
)

METRIC = MetricResult(
    name="accuracy",
    direction="maximize",
    dense=0.9,
    sparse=0.89,
    drop=0.01,
    interval=(0.0, 0.02),
    confidence=0.95,
    samples=1000,
    dense_interval=(0.87, 0.92),
    sparse_interval=(0.86, 0.91),
    method="how",
    spread=0.1,
    reach=1.0,
)
SPARSITY = SparsityResult(target=0.8, onnx=0.8, weights=100, parameters=1000, model=0.08)


def _metric(**changes):
    return METRIC.model_copy(update=changes)


def _sparsity(onnx):
    return SPARSITY.model_copy(update={"onnx": onnx, "model": onnx})


def _latency(batch_size, ratio, high):
    spread = SpreadResult(median_ms=1, iqr_ms=0)
    return LatencyResult(
        batch_size=batch_size,
        threads=1,
        runs=10,
        calls_per_run=1,
        dense_wall=spread,
        sparse_wall=spread,
        dense_cpu=spread,
        sparse_cpu=spread,
        clock="thread CPU",
        ratio=ratio,
        interval=(0.1, high),
        verdict="",
    )


def _judge(measured=None, **gates):
    measured = {
        "metric": METRIC,
        "sparsity": SPARSITY,
        "size_ratio": 0.3,
        "latency": (_latency(1, 0.5, 0.6), _latency(16, 0.4, 0.9)),
        "parity_error": 1e-5,
    } | (measured or {})
    return judge(GatesSection(**gates), **measured)


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


def test_the_lower_bound_of_sparsity():
    for threshold, passed in [(0.8, True), (0.79, True), (0.81, False)]:
        (result,) = _judge(min_sparsity=threshold)
        assert result.passed is passed


def test_without_confidence_the_point_estimate_counts():
    (result,) = _judge(max_metric_drop=0.015, confidence="none")
    assert result.passed
    assert result.measured == 0.01


def test_a_latency_that_is_too_noisy_to_judge_fails_and_says_so():
    noisy = _latency(16, 0.9, 1.3).model_copy(update={"finding": "too noisy to judge"})
    (result,) = _judge({"latency": (_latency(1, 0.5, 0.6), noisy)}, max_latency_ratio=2)
    assert not result.passed
    assert result.measured == 1.3
    assert "too noisy to judge (batch 16, threads: 1)" in result.reason


@pytest.mark.parametrize(
    ("gate", "missing"),
    [
        ("max_metric_drop", {"metric": _metric(interval=None)}),
        ("min_metric", {"metric": _metric(sparse_interval=None)}),
        ("max_metric", {"metric": _metric(sparse_interval=None)}),
        ("min_sparsity", {"sparsity": _sparsity(None)}),
        ("min_model_sparsity", {"sparsity": _sparsity(None)}),
        ("max_size_ratio", {"size_ratio": None}),
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
    metric = _metric(
        drop=bad, sparse=bad, interval=(bad, bad), dense_interval=None, sparse_interval=(bad, bad)
    )
    measured = {
        "metric": metric,
        "sparsity": _sparsity(bad),
        "size_ratio": bad,
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
    (result,) = _judge(
        {"metric": _metric(interval=None, method="none: because")}, max_metric_drop=1
    )
    assert "none: because" in result.reason


def test_a_threshold_of_zero_is_a_gate():
    (result,) = _judge(max_metric_drop=0.0)
    assert not result.passed


def test_gates_that_are_not_set_are_not_judged():
    assert _judge() == ()
