"""Intervals for a metric that is one number for the whole set, such as a rank correlation.

The percentile bootstrap says how much the metric moves from sample to sample, but nothing of what
no sample shows: where no output has changed, all resamples agree. So one more case is added to the
n, as in :mod:`mfac_compress.pipeline.verdict.bounded_mean`, with a share of B ~ Beta(1, n) of all
cases, which moves the metric by B times the most that cases can. Where all resamples agree, that is
the share 1 − tail^(1/n) that n samples can miss. How much cases can move is measured: one row's
output is replaced by another row's, and the largest effect, times n, counts.

References:
    Efron, Tibshirani (1993), An introduction to the bootstrap, chapter 13.
"""

import warnings
from collections.abc import Callable, Iterator
from itertools import cycle, islice, product

import numpy as np
from scipy import optimize

from mfac_compress.pipeline.verdict.statistics import Ends, MetricIntervals

RESAMPLES = 2000
EXCHANGES = 250
_MOST_LEFT_OUT = 0.05
# Not the run's seed: among a hundred seeds one would pass what the others do not.
_SEED = 20240229

Measure = Callable[[np.ndarray, np.ndarray], float | None]
"""Of outputs and targets of the same rows; None where the metric has no value on them."""


def whole_set_intervals(
    measure: Measure,
    dense: np.ndarray,
    sparse: np.ndarray,
    targets: np.ndarray,
    sign: int,
    declared: Ends | None,
    confidence: float,
) -> MetricIntervals:
    """Intervals for a metric of the whole set.

    Args:
        measure: The metric.
        dense: Outputs of the dense file. Shape ``[n, ...]``.
        sparse: Of the sparse file, for the same samples. Shape ``[n, ...]``.
        targets: Shape ``[n, ...]``.
        sign: 1 where more is better, −1 where less is.
        declared: Least and greatest value that the metric can have; None where nothing is said.
        confidence: For example 0.95, two-sided.
    """
    with warnings.catch_warnings():
        # A library's warning that a resample has one class only, 2,000 times.
        warnings.simplefilter("ignore")
        values = np.array(
            [
                [measure(outputs[rows], targets[rows]) for outputs in (dense, sparse)]
                for rows in resampled_rows(len(targets))
            ],
            dtype=np.float64,  # None becomes NaN
        )
        effect = max(_largest_effect(measure, outputs, targets) for outputs in (dense, sparse))
    reach = max(effect * len(targets), declared[1] - declared[0] if declared else 0.0)
    return intervals_of_resamples(values, sign, reach, len(targets), confidence)


def intervals_of_resamples(
    values: np.ndarray, sign: int, reach: float, n: int, confidence: float
) -> MetricIntervals:
    """From the metric on the resamples to the intervals.

    Args:
        values: Of the dense and the sparse file; NaN where there is none. Shape ``[resamples, 2]``.
        sign: 1 where more is better, −1 where less is.
        reach: Most that one row can change the metric by, times n.
        n: Number of samples.
        confidence: For example 0.95, two-sided.
    """
    defined = np.isfinite(values).all(1)
    left_out = int((~defined).sum())
    if left_out > _MOST_LEFT_OUT * len(values):
        method = (
            f"none: task.metric has no value on {left_out:,} of {len(values):,} resamples of the "
            "validation samples. Add samples, above all of the rare class"
        )
        return MetricIntervals(None, None, None, method, resamples_left_out=left_out)
    if reach == 0:
        method = (
            "none: no exchange of outputs changes the metric, so that nothing shows how far it can "
            "move. Declare task.range"
        )
        return MetricIntervals(None, None, None, method, resamples_left_out=left_out)
    values = values[defined]
    tail = (1 - confidence) / 2
    drops = sign * (values[:, 0] - values[:, 1])
    dense, sparse, drop = (
        (-_upper_end(-column, reach, n, tail), _upper_end(column, reach, n, tail))
        for column in (values[:, 0], values[:, 1], drops)
    )
    method = "percentile bootstrap with one more case, the worst possible"
    spread = float(drops.std()) * n**0.5
    return MetricIntervals(dense, sparse, drop, method, spread, reach, resamples_left_out=left_out)


def _upper_end(values: np.ndarray, reach: float, n: int, tail: float) -> float:
    """Quantile of the metric on a resample plus ``reach`` × Beta(1, n)."""
    top = float(values.max())

    def above(end: float) -> float:
        share = np.clip((top + reach * end - values) / reach, 0, 1)
        return float(((1 - share) ** n).mean()) - tail

    bottom = (float(values.min()) - top) / reach
    return top + reach * float(optimize.brentq(above, bottom, 1))


def resampled_rows(n: int) -> Iterator[np.ndarray]:
    """Positions of each resample, with repeats. Shape ``[n]``."""
    rng = np.random.default_rng(_SEED)
    for _ in range(RESAMPLES):
        yield rng.integers(n, size=n)


def exchanged_rows(targets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of a row and the row whose output it gets: all of them where n is small.

    Classes take turns: what one case of a rare class can change is the most that there is.
    """
    n, rng = len(targets), np.random.default_rng(_SEED)
    if n * n <= EXCHANGES:
        yield from product(range(n), repeat=2)
        return
    rows = rng.permutation(n)
    classes = np.unique(targets) if targets.ndim == 1 else ()
    if not 1 < len(classes) <= EXCHANGES // 5:
        turns = [cycle(rows)]
    else:
        turns = [cycle(rows[targets[rows] == one]) for one in classes]
    for turn in islice(cycle(turns), EXCHANGES):
        yield int(next(turn)), int(rng.integers(n))


def _largest_effect(measure: Measure, outputs: np.ndarray, targets: np.ndarray) -> float:
    """Most that the metric changes where one row's output is replaced by another's."""
    whole = measure(outputs, targets)
    changed = outputs.copy()
    effects = [0.0]
    for row, other in exchanged_rows(targets):
        changed[row] = outputs[other]
        value = measure(changed.copy(), targets.copy())
        if whole is not None and value is not None:
            effects.append(abs(value - whole))
        changed[row] = outputs[row]
    return max(effects)
