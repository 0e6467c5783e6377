"""Each gate compares the right number, and never passes without one."""

import pytest

from mfac_compress.pipeline.recipe.schema import GatesSection
from mfac_compress.pipeline.verdict.gates import judge
from mfac_compress.pipeline.verdict.report import LatencyResult, MetricResult, SpreadResult

METRIC = MetricResult(
    name="accuracy",
    direction="maximize",
    dense=0.9,
    sparse=0.89,
    drop=0.01,
    interval=(0.0, 0.02),
    confidence=0.95,
    samples=1000,
)


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
        "sparsity": 0.8,
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
        ("min_sparsity", {"sparsity": None}),
        ("max_latency_ratio", {"latency": ()}),
        ("max_parity_error", {"parity_error": None}),
    ],
)
def test_a_missing_measurement_fails(gate, missing):
    (result,) = _judge(missing, **{gate: 0.5})
    assert not result.passed
    assert "not measured" in result.reason


def test_a_threshold_of_zero_is_a_gate():
    (result,) = _judge(max_metric_drop=0.0)
    assert not result.passed


def test_gates_that_are_not_set_are_not_judged():
    assert _judge() == ()
