"""The bound of a bounded mean: exact for two values, equivariant, between the mean and the top."""

import numpy as np
import pytest
from scipy import stats

from mfac_compress.pipeline.statistics.bounded_mean import upper_bound


@pytest.mark.parametrize("n", [1, 2, 5, 30, 1000, 100_000])
@pytest.mark.parametrize("tail", [0.025, 0.005, 0.2])
def test_for_two_values_it_is_the_exact_binomial_bound(n, tail):
    for ones in sorted({0, 1, n // 4, n // 2, n - 1}):
        values = np.repeat([1.0, 0.0], [ones, n - ones])
        exact = 1 if ones == n else stats.beta.ppf(1 - tail, ones + 1, n - ones)
        bound = float(upper_bound(values, 1.0, tail))
        assert bound == pytest.approx(exact, rel=0.02)
        assert bound > exact * (1 - 1e-3)


def test_it_is_the_quantile_of_means_by_dirichlet_weights():
    rng = np.random.default_rng(0)
    for values in (rng.beta(0.3, 5, 40), rng.normal(0, 0.3, 40).clip(-1, 1), rng.random(3)):
        weights = rng.dirichlet(np.ones(len(values) + 1), size=100_000)
        expected = np.quantile(weights @ np.append(values, 1.0), 0.975)
        assert upper_bound(values, 1.0, 0.025) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("scale", [100.0, 1e-9, 1e200])
def test_it_scales_and_shifts_with_the_unit(scale):
    values = np.random.default_rng(0).uniform(-1, 1, 50)
    bound = upper_bound(values, 1.0, 0.025)
    assert upper_bound(values * scale, scale, 0.025) == pytest.approx(bound * scale, rel=1e-9)
    assert upper_bound(values + 3, 4.0, 0.025) == pytest.approx(bound + 3, rel=1e-9)


def test_it_depends_on_no_order():
    values = np.random.default_rng(0).random(50)
    assert upper_bound(values[::-1], 1.0, 0.025) == pytest.approx(upper_bound(values, 1.0, 0.025))


def test_rows_are_bounded_each_on_its_own():
    values = np.random.default_rng(0).random((4, 20))
    alone = [float(upper_bound(row, 1.0, 0.025)) for row in values]
    assert upper_bound(values, 1.0, 0.025) == pytest.approx(alone)


def test_it_nears_the_normal_bound():
    values = np.random.default_rng(0).beta(2, 5, 20_000)
    normal = values.mean() + 1.959964 * values.std() / np.sqrt(20_000)
    assert upper_bound(values, 1.0, 0.025) - normal == pytest.approx(0, abs=1.5 / 20_000)


def test_values_at_the_top_leave_no_room():
    assert upper_bound(np.full(5, 7.0), 7.0, 0.025) == 7.0


def test_numpys_error_settings_do_not_reach_it():
    with np.errstate(all="raise"):
        assert upper_bound(np.zeros(9), 1.0, 0.025) > 0
