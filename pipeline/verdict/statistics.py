"""Confidence intervals of the drop of a metric, from the same samples before and after.

A small validation set must not pass a gate by luck, so the intervals stay honest where few or no
samples differ: the score interval for 0/1 values is not empty even when all agree.
"""

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist

import numpy as np
from scipy import optimize, stats

Interval = tuple[float, float]
_RESAMPLES = 2000


def paired_interval(drops: np.ndarray, confidence: float) -> Interval:
    """Two-sided interval of the mean of per-sample drops.

    Values in {−1, 0, 1}, differences of 0/1 scores, get Tango's score interval; any others
    Student's t.

    Args:
        drops: Per-sample drop, before − after where more is better. Shape ``[n]``.
        confidence: For example 0.95.

    Raises:
        ValueError: If fewer than two real-valued samples are given.
    """
    n = len(drops)
    if np.isin(drops, (-1, 0, 1)).all() and n:
        return _tango_interval(int((drops > 0).sum()), int((drops < 0).sum()), n, confidence)
    if n < 2:
        raise ValueError(f"An interval needs at least 2 samples. Got {n}.")
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * drops.std(ddof=1) / sqrt(n)
    return float(drops.mean() - half), float(drops.mean() + half)


def bootstrap_interval(
    drop_of: Callable[[np.ndarray], float], n: int, confidence: float, seed: int
) -> Interval:
    """Percentile bootstrap for a metric of the whole set, such as a rank correlation.

    Args:
        drop_of: Sample positions ``[n]`` (with repeats) -> drop of the metric on them.
        n: Number of samples.
        confidence: For example 0.95.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    drops = [drop_of(rng.integers(n, size=n)) for _ in range(_RESAMPLES)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drops, [tail, 1 - tail])
    return float(low), float(high)


def _tango_interval(lost: int, gained: int, n: int, confidence: float) -> Interval:
    """Score interval of (lost − gained) / n for paired 0/1 values.

    References:
        Tango (1998), Equivalence test and confidence interval for the difference in proportions
        for the paired-sample design, Statistics in Medicine 17, equations 7 to 9.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return -_tango_upper(gained, lost, n, z), _tango_upper(lost, gained, n, z)


def _tango_upper(lost: int, gained: int, n: int, z: float) -> float:
    """The difference above the estimate at which the score falls to −z."""
    if lost == n:
        return 1.0
    estimate = (lost - gained) / n
    return optimize.brentq(lambda d: _tango_score(lost, gained, n, d) + z, estimate, 1 - 1e-12)


def _tango_score(lost: int, gained: int, n: int, difference: float) -> float:
    """How many standard errors the counts lie above a true difference."""
    A = 2 * n
    B = -lost - gained + (2 * n - lost + gained) * difference
    C = -gained * difference * (1 - difference)
    q = (sqrt(B * B - 4 * A * C) - B) / (2 * A)
    variance = n * (2 * q + difference * (1 - difference))
    return (lost - gained - n * difference) / sqrt(variance) if variance > 0 else 0.0
