"""Intervals for a metric that is one number for the whole set, such as a rank correlation.

The percentile bootstrap says how much the metric moves from sample to sample, but nothing of what
no sample shows: where no output has changed, all resamples agree. So one more case is added to the
n, as in :mod:`.bounded_mean`, with a share of B ~ Beta(1, n) of all cases, which moves the metric
by B times the most that cases can. Where all resamples agree, that is the share 1 − tail^(1/n) that
n samples can miss. How much cases can move is measured: one row's output is replaced by another
row's, and the largest effect, times n, counts.

References:
    Efron, Tibshirani (1993), An introduction to the bootstrap, chapter 13.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice, product

import numpy as np
from scipy import optimize

from mfac_compress.mfac.batch import Tree, map_tensors, named_tensors, size
from mfac_compress.pipeline.statistics.per_sample import Ends, MetricIntervals

RESAMPLES = 2000
EXCHANGES = 250
_MOST_LEFT_OUT = 0.05
# Not the run's seed: among a hundred seeds one would pass what the others do not.
_SEED = 20240229

Measure = Callable[[Tree, Tree], float | None]
"""Of outputs and targets of the same rows; None where the metric has no value on them."""


def whole_set_intervals(
    measure: Measure,
    outputs: Sequence[Tree],
    targets: Tree,
    sign: int,
    declared: Ends | None,
    confidence: float,
) -> list[MetricIntervals]:
    """Intervals for a metric of the whole set.

    Args:
        measure: The metric.
        outputs: Of each file for the same samples, the reference first. Trees of arrays
            ``[n, ...]``.
        targets: Tree of arrays ``[n, ...]``.
        sign: 1 where more is better, −1 where less is.
        declared: Least and greatest value that the metric can have; None where nothing is said.
        confidence: For example 0.95, two-sided.
    Returns:
        Those of each file against the reference, the reference included.
    """
    n = size(targets)
    with warnings.catch_warnings():
        # A library's warning that a resample has one class only, 2,000 times.
        warnings.simplefilter("ignore")
        values = [_resampled_values(measure, each, targets) for each in outputs]
        effects = [_largest_effect(measure, each, targets) for each in outputs]
    width = declared[1] - declared[0] if declared else 0.0
    return [
        intervals_of_resamples(
            np.stack([values[0], own], 1), sign, max(n * effects[0], n * effect, width), n,
            confidence,
        )
        for own, effect in zip(values, effects, strict=True)
    ]  # fmt: skip


def _resampled_values(measure: Measure, outputs: Tree, targets: Tree) -> np.ndarray:
    """The metric on each resample, NaN where it has no value. Shape ``[resamples]``."""
    found = [
        measure(rows_of(outputs, rows), rows_of(targets, rows))
        for rows in resampled_rows(size(targets))
    ]
    return np.array(found, dtype=np.float64)  # None becomes NaN


def rows_of(tree: Tree, rows: np.ndarray) -> Tree:
    """Copy rows of each array of a tree."""
    return map_tensors(lambda array: array[rows], tree)


def shuffle(tree: Tree) -> Tree:
    """Copy a tree with its rows in random order, the same each time."""
    return rows_of(tree, np.random.default_rng(0).permutation(size(tree)))


def intervals_of_resamples(
    values: np.ndarray, sign: int, reach: float, n: int, confidence: float
) -> MetricIntervals:
    """From the metric on the resamples to the intervals.

    Args:
        values: Of the reference and the file that is judged; NaN where there is none. Shape
            ``[resamples, 2]``.
        sign: 1 where more is better, −1 where less is.
        reach: Most that one row can change the metric by, times n.
        n: Number of samples.
        confidence: For example 0.95, two-sided.
    """
    defined = np.isfinite(values).all(1)
    left_out = int((~defined).sum())
    if left_out > _MOST_LEFT_OUT * len(values):
        method = (
            f"none: the metric has no value on {left_out:,} of {len(values):,} resamples of the "
            "validation samples. Add samples, above all of the rare class"
        )
        return MetricIntervals(None, None, method, resamples_left_out=left_out)
    if reach == 0:
        method = (
            "none: no exchange of outputs changes the metric, so that nothing shows how far it can "
            "move. Declare the metric's range"
        )
        return MetricIntervals(None, None, method, resamples_left_out=left_out)
    values = values[defined]
    tail = (1 - confidence) / 2
    drops = sign * (values[:, 0] - values[:, 1])
    own, drop = (
        (-_upper_end(-column, reach, n, tail), _upper_end(column, reach, n, tail))
        for column in (values[:, 1], drops)
    )
    method = "percentile bootstrap with one more case, the worst possible"
    spread = float(drops.std()) * n**0.5
    return MetricIntervals(own, drop, method, spread, reach, resamples_left_out=left_out)


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


def exchanged_rows(targets: Tree) -> Iterator[tuple[int, int]]:
    """Pairs of a row and the row whose output it gets: all of them where n is small.

    Classes take turns: what one case of a rare class can change is the most that there is.
    """
    n, rng = size(targets), np.random.default_rng(_SEED)
    if n * n <= EXCHANGES:
        yield from product(range(n), repeat=2)
        return
    rows, labels = rng.permutation(n), _classes(targets)
    if labels is None:
        turns = [cycle(rows)]
    else:
        turns = [cycle(rows[labels[rows] == one]) for one in np.unique(labels)]
    for turn in islice(cycle(turns), EXCHANGES):
        yield int(next(turn)), int(rng.integers(n))


def _classes(targets: Tree) -> np.ndarray | None:
    """The class of each row; None where nothing in the targets looks like classes."""
    for _, array in named_tensors(targets):
        if array.ndim == 1 and 1 < len(np.unique(array)) <= EXCHANGES // 5:
            return array
    return None


def _largest_effect(measure: Measure, outputs: Tree, targets: Tree) -> float:
    """Most that the metric changes where one row's output is replaced by another's."""
    whole = measure(outputs, targets)
    effects = [0.0]
    for row, other in exchanged_rows(targets):
        rows = np.arange(size(targets))
        rows[row] = other
        value = measure(rows_of(outputs, rows), map_tensors(np.copy, targets))
        if whole is not None and value is not None:
            effects.append(abs(value - whole))
    return max(effects)
