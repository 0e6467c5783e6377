"""Intervals of a metric with values per sample: in any unit, never of no width."""

from statistics import NormalDist

import numpy as np
import pytest

from mfac_compress.pipeline.statistics.per_sample import per_sample_intervals, samples_needed

Z = NormalDist().inv_cdf(0.975)


def _scores(n, seed=0):
    rng = np.random.default_rng(seed)
    before = rng.beta(5, 2, n)
    return before, (before - 0.1 * rng.random(n)).clip(0, 1)


def _answers(lost, gained, n):
    before = np.repeat([1.0, 0.0, 1.0], [lost, gained, n - lost - gained])
    after = np.repeat([0.0, 1.0, 1.0], [lost, gained, n - lost - gained])
    return before, after


@pytest.mark.parametrize("unit", [100, 1e-3])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("values", [_scores(40), _answers(3, 1, 40), _answers(0, 0, 40)])
def test_intervals_scale_exactly_with_the_unit(unit, declared, values):
    small = per_sample_intervals(*values, 1, (0.0, 1.0) if declared else None, 0.95)
    scaled = [unit * value for value in values]
    large = per_sample_intervals(*scaled, 1, (0.0, unit) if declared else None, 0.95)
    for name in ("own", "drop"):
        expected = [unit * end for end in getattr(small, name)]
        assert getattr(large, name) == pytest.approx(expected, rel=1e-9)
    assert small.method == large.method


def test_answers_get_tangos_interval_in_their_unit():
    for unit in (1.0, 100.0):
        before, after = (unit * value for value in _answers(0, 0, 100))
        found = per_sample_intervals(before, after, 1, (0.0, unit), 0.95)
        assert found.method.startswith("Tango")
        assert found.drop[1] == pytest.approx(unit * Z**2 / (100 + Z**2))


@pytest.mark.parametrize("sign", [1, -1])
def test_rare_heavy_drops_are_not_missed(sign):
    """30 samples of a metric in 0..100, none of which shows that 3% fail completely."""
    values = np.full(30, 90.0) + np.arange(30) / 10
    found = per_sample_intervals(values, values, sign, (0.0, 100.0), 0.95)
    assert found.drop[0] < -3
    assert found.drop[1] > 3


def test_unchanged_errors_get_an_interval_of_their_own_size():
    """Not of ±0.037, which is that of 100 answers, and not of no width."""
    errors = np.random.default_rng(0).gamma(2, 1e-4, 100)
    found = per_sample_intervals(errors, errors, -1, None, 0.95)
    assert found.drop[1] == pytest.approx(0.0363 * errors.max(), rel=0.01)
    assert found.assumed_range == (0.0, errors.max())


def test_without_any_sign_of_a_range_there_is_no_interval():
    found = per_sample_intervals(np.zeros(9), np.zeros(9), 1, None, 0.95)
    assert (found.drop, found.own) == (None, None)
    assert "Declare" in found.method


def test_more_samples_make_it_narrower():
    widths = [
        np.ptp(per_sample_intervals(*_scores(n), 1, (0.0, 1.0), 0.95).drop) for n in (100, 10_000)
    ]
    assert widths[0] > 10 * widths[1]


def test_the_metrics_own_intervals_hold_its_mean_and_stay_in_the_range():
    before, after = _scores(25)
    for values in (before, after):
        low, high = per_sample_intervals(before, values, 1, (0.0, 1.0), 0.95).own
        assert 0 <= low < values.mean() < high <= 1


@pytest.mark.parametrize("values", [_scores, lambda n: _answers(0, 0, n)])
@pytest.mark.parametrize("tolerance", [0.06, 0.1])
def test_as_many_samples_as_are_said_to_be_needed_suffice(values, tolerance):
    before, after = values(50)
    found = per_sample_intervals(before, after, 1, (0.0, 1.0), 0.95)
    drop = (before - after).mean()
    needed = samples_needed(tolerance, drop, found.spread, found.reach, 0.95)
    for n, suffices in ((int(1.3 * needed), True), (int(0.7 * needed), False)):
        repeated = [np.resize(value, n) for value in (before, after)]
        end = per_sample_intervals(*repeated, 1, (0.0, 1.0), 0.95).drop[1]
        assert (end <= tolerance) == suffices


def test_no_number_of_samples_shows_that_a_drop_is_less_than_it_is():
    assert samples_needed(0.01, 0.01, 0.1, 1.0, 0.95) is None
