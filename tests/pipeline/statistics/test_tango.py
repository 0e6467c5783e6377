"""Tango's score interval: the equations it must solve, and its coverage."""

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from mfac_compress.pipeline.statistics.tango import tango_interval

Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize("n", [1, 10, 100, 5000])
def test_full_agreement_still_leaves_room(n):
    low, high = tango_interval(0, 0, n, 0.95)
    assert high == pytest.approx(Z**2 / (n + Z**2))
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 1, 20), (0, 4, 50), (30, 3, 1000)])
def test_ends_solve_the_score_equation(lost, gained, n):
    """The score with its nuisance probability found by brute-force maximum likelihood."""
    for end, z in zip(tango_interval(lost, gained, n, 0.95), (Z, -Z), strict=True):
        q = np.linspace(max(0, -end), (1 - end) / 2, 400_001)[1:-1]
        with np.errstate(divide="ignore"):
            likelihood = lost * np.log(q + end) + gained * np.log(q)
            likelihood += (n - lost - gained) * np.log1p(-2 * q - end)
        best = q[np.nanargmax(likelihood)]
        score = (lost - gained - n * end) / sqrt(n * (2 * best + end - end**2))
        assert score == pytest.approx(z, rel=2e-3)


def test_losing_everything_is_certain_at_the_top():
    low, high = tango_interval(40, 0, 40, 0.95)
    assert high == 1
    assert low > 0.8


def test_more_samples_make_it_narrower():
    widths = [np.ptp(tango_interval(n // 50, n // 100, n, 0.95)) for n in (100, 1000)]
    assert widths[0] > 2 * widths[1]


def test_coverage_is_what_it_says():
    rng, hits = np.random.default_rng(0), 0
    for lost, gained, _ in rng.multinomial(150, [0.06, 0.03, 0.91], size=1000):
        low, high = tango_interval(int(lost), int(gained), 150, 0.9)
        hits += low <= 0.03 <= high
    assert 870 <= hits <= 930
