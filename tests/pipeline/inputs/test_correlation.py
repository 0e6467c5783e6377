"""Rank correlations against SciPy's, and which outputs they take."""

import numpy as np
import pytest
from scipy import stats

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.correlation import pairs_of, spearman
from mfac_compress.pipeline.inputs.metric_values import UndefinedMetricError
from mfac_compress.pipeline.inputs.task_metric import load_metric
from mfac_compress.pipeline.recipe.schema import MetricSection
from mfac_compress.pipeline.stages.metric import compare_metric
from mfac_compress.pipeline.statistics import resampling

RNG = np.random.default_rng(0)


KEY = "task.metric"


def _metric(name, **section):
    return load_metric(MetricSection(metric=name, **section), section="task", folder=".")


def _pairs(n, noise):
    """Embeddings of pairs, the less alike the smaller their score is."""
    scores = RNG.uniform(0, 5, n).round(1)
    first = RNG.normal(size=(n, 16))
    second = first * scores[:, None] + RNG.normal(size=(n, 16)) * noise * (6 - scores[:, None])
    return np.stack([first, second], 1).reshape(2 * n, 16), scores.repeat(2)


def test_it_is_scipys_also_with_ties():
    scores, targets = RNG.normal(size=200).round(1), RNG.integers(0, 6, 200)
    expected = stats.spearmanr(scores, targets).statistic
    assert spearman(KEY, scores, targets) == pytest.approx(expected, abs=1e-12)
    assert _metric("spearman").evaluate(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_pairs_are_reduced_to_cosines():
    outputs, targets = _pairs(50, 1.0)
    cosines, scores = pairs_of(KEY, outputs, targets)
    expected = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in outputs.reshape(50, 2, -1)
    ]
    assert np.allclose(cosines, expected, atol=1e-12)
    assert np.array_equal(scores, targets[::2])
    outputs[0] = 0
    assert pairs_of(KEY, outputs, targets)[0][0] == 0


def test_equal_scores_have_no_correlation():
    with pytest.raises(UndefinedMetricError, match="scores and targets that differ"):
        spearman(KEY, np.ones(9), np.arange(9))


def test_rows_that_are_no_pairs_are_refused():
    outputs, targets = _pairs(9, 1.0)
    with pytest.raises(InputError, match="Got 17 samples"):
        pairs_of(KEY, outputs[:-1], targets[:-1])
    with pytest.raises(InputError, match="the same target for both samples of a pair"):
        pairs_of(KEY, outputs[1:-1], targets[1:-1])
    cosine = _metric("spearman_cosine")
    with pytest.raises(InputError, match=r"needs outputs \[n, d\]"):
        cosine.cases(targets, targets)
    with pytest.raises(InputError, match=r"needs outputs \[n\] and targets \[n\]"):
        _metric("spearman").evaluate(outputs[:, :4], targets)
    outputs[3, 3] = np.nan
    with pytest.raises(InputError, match="finite"):
        cosine.cases(outputs, targets)


def test_intervals_count_pairs_and_keep_them_together(monkeypatch):
    """Resampled sentence by sentence, the pairs would be torn apart and nothing left of it."""
    monkeypatch.setattr(resampling, "RESAMPLES", 200)
    dense, targets = _pairs(300, 0.3)
    worse = dense + RNG.normal(size=dense.shape) * 0.1
    outputs = {"dense": dense, "sparse": worse}
    metric, drops = compare_metric(_metric("spearman_cosine"), 0.95, outputs, targets)
    cosines = {name: pairs_of(KEY, each, targets)[0] for name, each in outputs.items()}
    of_scores, expected = compare_metric(_metric("spearman"), 0.95, cosines, targets[::2])
    assert metric.samples == of_scores.samples == 300
    assert metric.better_than_chance
    assert drops == expected
    low, high = drops["sparse"].interval
    assert low < drops["sparse"].value < high
    assert low > 0.5


def test_it_is_compared_with_a_known_range_only():
    with pytest.raises(ValueError, match=r"whose range is \[-1, 1\]"):
        _metric("spearman", range=[0, 1])
    with pytest.raises(ValueError, match=r"must be maximize where the metric is spearman"):
        _metric("spearman", direction="minimize")
