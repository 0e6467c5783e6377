"""Intervals of metrics of the whole set."""

import numpy as np
import pytest

from mfac_compress.pipeline.statistics.resampling import (
    EXCHANGES,
    RESAMPLES,
    exchanged_rows,
)
from mfac_compress.pipeline.statistics.resampling import whole_set_intervals as of_files

Z = 1.959964


def whole_set_intervals(measure, dense, sparse, *arguments):
    """Those of the second file."""
    return of_files(measure, [dense, sparse], *arguments)[1]


def _accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).mean())


def _mean(outputs, targets):
    return float(outputs.mean())


def _logits(n, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=n)
    return np.eye(classes)[targets] + rng.normal(size=(n, classes)) / 2, targets


@pytest.mark.parametrize("n", [8, 100])
def test_unchanged_outputs_still_leave_room(n):
    outputs, targets = _logits(n)
    found = whole_set_intervals(_accuracy, outputs, outputs, targets, 1, None, 0.95)
    assert found.drop[1] == pytest.approx(1 - 0.025 ** (1 / n))
    assert found.drop[0] == pytest.approx(-found.drop[1])


def test_it_agrees_with_theory_on_a_mean():
    rng = np.random.default_rng(1)
    before = rng.normal(3, 2, size=(400, 1))
    after = before - rng.normal(1, 1, size=(400, 1))
    found = whole_set_intervals(_mean, before, after, np.zeros(400), 1, None, 0.95)
    drops = (before - after).ravel()
    half = Z * drops.std() / 20
    worst = found.reach / 400  # the added case
    assert found.drop[0] == pytest.approx(drops.mean() - half, abs=2 * worst)
    assert found.drop[1] == pytest.approx(drops.mean() + half, abs=2 * worst)


@pytest.mark.parametrize("unit", [100, 1e-3])
def test_intervals_scale_exactly_with_the_unit(unit):
    outputs, targets = _logits(30)
    worse = outputs + np.random.default_rng(1).normal(size=outputs.shape)
    small = whole_set_intervals(_accuracy, outputs, worse, targets, 1, None, 0.95)

    def scaled(outputs, targets):
        return unit * _accuracy(outputs, targets)

    large = whole_set_intervals(scaled, outputs, worse, targets, 1, None, 0.95)
    for name in ("own", "drop"):
        expected = [unit * end for end in getattr(small, name)]
        assert getattr(large, name) == pytest.approx(expected, rel=1e-9)


def test_resamples_without_a_value_are_counted_and_too_many_are_no_interval():
    outputs, targets = _logits(200, classes=2)

    def of_both_classes(outputs, targets):
        return _accuracy(outputs, targets) if len(np.unique(targets)) == 2 else None

    for positives, is_defined in ((4, True), (2, False)):
        targets = (np.arange(200) < positives).astype(int)
        found = whole_set_intervals(of_both_classes, outputs, outputs, targets, 1, None, 0.95)
        assert (found.drop is not None) == is_defined
        share = found.resamples_left_out / RESAMPLES
        assert share == pytest.approx((1 - positives / 200) ** 200, abs=0.02)
    assert "no value on" in found.method


def test_a_metric_that_nothing_moves_has_no_interval_unless_its_range_is_declared():
    def constant(outputs, targets):
        return 0.5

    outputs, targets = _logits(50)
    found = whole_set_intervals(constant, outputs, outputs, targets, 1, None, 0.95)
    assert found.drop is None
    assert "Declare" in found.method
    declared = whole_set_intervals(constant, outputs, outputs, targets, 1, (0.0, 1.0), 0.95)
    assert declared.drop[1] == pytest.approx(1 - 0.025 ** (1 / 50))


def test_a_rare_class_can_move_the_metric_most():
    """Of 200 samples, 4 are positive: one of them is a quarter of recall."""

    def recall(outputs, targets):
        return float(outputs[targets == 1].argmax(1).mean()) if targets.any() else None

    targets = (np.arange(200) < 4).astype(int)
    outputs = np.eye(2)[targets]
    found = whole_set_intervals(recall, outputs, outputs, targets, 1, None, 0.95)
    assert found.reach == pytest.approx(200 / 4)


@pytest.mark.parametrize("targets", [np.arange(300), np.zeros((300, 2)), np.zeros(300), np.ones(5)])
def test_exchanges_are_few_and_within_the_set(targets):
    pairs = list(exchanged_rows(targets))
    assert 0 < len(pairs) <= EXCHANGES
    assert max(map(max, pairs)) < len(targets)


def test_each_file_is_judged_apart_from_the_others():
    """However bad another one is, and the reference against itself has lost nothing."""
    outputs, targets = _logits(60)
    rng = np.random.default_rng(1)
    worse, useless = outputs + rng.normal(size=outputs.shape), rng.normal(size=outputs.shape)
    alone = of_files(_accuracy, [outputs, worse], targets, 1, None, 0.95)
    together = of_files(_accuracy, [outputs, useless, worse], targets, 1, None, 0.95)
    assert (together[0], together[2]) == tuple(alone)
    assert alone[0].drop == pytest.approx((-alone[0].drop[1], alone[0].drop[1]))


def test_rows_of_trees_stay_together():
    """Outputs and targets in dicts and tuples give the intervals of the arrays in them."""
    outputs, targets = _logits(60)
    worse = outputs + np.random.default_rng(1).normal(size=outputs.shape)

    def accuracy(outputs, targets):
        return _accuracy(outputs["scores"][0], targets["label"])

    trees = [{"scores": (each, np.zeros(60))} for each in (outputs, worse)]
    found = of_files(
        accuracy, trees, {"unused": np.zeros((60, 2)), "label": targets}, 1, None, 0.95
    )
    expected = of_files(_accuracy, [outputs, worse], targets, 1, None, 0.95)
    assert found == expected
