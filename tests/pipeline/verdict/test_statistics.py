"""Intervals: the equations they must solve, and their coverage."""

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from mfac_compress.pipeline.verdict.statistics import bootstrap_interval, paired_interval

Z = NormalDist().inv_cdf(0.975)


def _drops(lost, gained, n):
    return np.array([1.0] * lost + [-1.0] * gained + [0.0] * (n - lost - gained))


@pytest.mark.parametrize("n", [1, 10, 100, 5000])
def test_full_agreement_still_leaves_room(n):
    low, high = paired_interval(_drops(0, 0, n), 0.95)
    assert high == pytest.approx(Z**2 / (n + Z**2))
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 1, 20), (0, 4, 50), (30, 3, 1000)])
def test_ends_solve_the_score_equation(lost, gained, n):
    """The score with its nuisance probability found by brute-force maximum likelihood."""
    for end, z in zip(paired_interval(_drops(lost, gained, n), 0.95), (Z, -Z), strict=True):
        q = np.linspace(max(0, -end), (1 - end) / 2, 400_001)[1:-1]
        with np.errstate(divide="ignore"):
            likelihood = lost * np.log(q + end) + gained * np.log(q)
            likelihood += (n - lost - gained) * np.log1p(-2 * q - end)
        best = q[np.nanargmax(likelihood)]
        score = (lost - gained - n * end) / sqrt(n * (2 * best + end - end**2))
        assert score == pytest.approx(z, rel=2e-3)


def test_losing_everything_is_certain_at_the_top():
    low, high = paired_interval(_drops(40, 0, 40), 0.95)
    assert high == 1
    assert low > 0.8


def test_more_samples_make_it_narrower():
    widths = [np.ptp(paired_interval(_drops(n // 50, n // 100, n), 0.95)) for n in (100, 1000)]
    assert widths[0] > 2 * widths[1]


def test_coverage_is_what_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        drops = rng.choice([1.0, -1.0, 0.0], p=[0.06, 0.03, 0.91], size=150)
        low, high = paired_interval(drops, 0.9)
        hits += low <= 0.03 <= high
    assert 870 <= hits <= 930


def test_real_values_get_students_interval():
    drops = np.array([0.5, 1.5, 2.5, 3.5])
    low, high = paired_interval(drops, 0.95)
    half = 3.182446 * drops.std(ddof=1) / 2
    assert (low, high) == pytest.approx((2 - half, 2 + half), rel=1e-4)


def test_one_real_value_has_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        paired_interval(np.array([0.5]), 0.95)


def test_the_bootstrap_agrees_with_theory_on_a_mean():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    low, high = bootstrap_interval(lambda rows: values[rows].mean(), 400, 0.95, seed=0)
    half = Z * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
