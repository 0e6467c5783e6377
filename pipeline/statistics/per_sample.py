"""Confidence intervals of a metric and of its drop, from the same samples before and after.

A small validation set must not pass a gate by luck, so every interval admits what n samples cannot
exclude: that a share of about 3.7/n of all cases behaves otherwise and was not met. How far those
cases can move the metric is given by the metric's range, which is declared or
taken from the values. All intervals scale exactly with the metric's unit.
"""

from dataclasses import dataclass
from math import ceil, exp, log, sqrt

import numpy as np
from scipy import optimize, stats

from mfac_compress.pipeline.statistics.bounded_mean import upper_bound
from mfac_compress.pipeline.statistics.tango import tango_interval

Ends = tuple[float, float]


@dataclass(frozen=True)
class MetricIntervals:
    """What n samples show of a metric and its drop; None where they cannot show anything.

    Attributes:
        own: Two-sided interval of the metric of the file that is judged.
        drop: Of how much worse it is than the reference.
        method: How they were made, or why there are none.
        spread: Standard deviation of one sample's share in the drop.
        reach: Most that one sample is taken to be able to change the metric by, times n.
        assumed_range: Range taken from the values met, where none is declared and one is needed.
        resamples_left_out: Resamples on which the metric had no value.
    """

    own: Ends | None
    drop: Ends | None
    method: str
    spread: float | None = None
    reach: float | None = None
    assumed_range: Ends | None = None
    resamples_left_out: int = 0


def observed_range(*values: np.ndarray) -> Ends:
    """Stand-in for a range that is not declared: from the least value met to the greatest, and 0.

    Zero belongs to it, because scores fall to zero and errors start there.
    """
    return min(0.0, *(float(v.min()) for v in values)), max(0.0, *(float(v.max()) for v in values))


def per_sample_intervals(
    before: np.ndarray, after: np.ndarray, sign: int, declared: Ends | None, confidence: float
) -> MetricIntervals:
    """Intervals for a metric that is the mean of one value per sample.

    Drops of values that are only ever one end of the declared range or the other get Tango's score
    interval, all else the bound of :mod:`mfac_compress.pipeline.statistics.bounded_mean`.

    Args:
        before: Values of the reference, within the range. Shape ``[n]``.
        after: Of the file that is judged, on the same samples. Shape ``[n]``.
        sign: 1 where more is better, −1 where less is.
        declared: Least and greatest value that the metric can have; None where nothing is said.
        confidence: For example 0.95, two-sided.
    """
    low, high = declared or observed_range(before, after)
    width = high - low
    if width == 0:
        return MetricIntervals(
            None,
            None,
            "none: every value is 0, so that nothing shows how far the metric can move. Declare "
            "its range",
        )
    drops = sign * (before - after) / width
    two_valued = declared is not None and all(np.isin(v, declared).all() for v in (before, after))
    if two_valued:
        lost, gained = (int((side * drops > 0).sum()) for side in (1, -1))
        drop = tango_interval(lost, gained, len(drops), confidence)
        method = "Tango's score interval"
    else:
        drop = _mean_interval(drops, -1.0, 1.0, confidence)
        assumed = (
            "the declared range" if declared else "the values met and 0 as range (none declared)"
        )
        method = f"Gaffke's bound with {assumed}"
    own = _mean_interval((after - low) / width, 0.0, 1.0, confidence)
    return MetricIntervals(
        _scaled(own, width, low),
        _scaled(drop, width),
        method,
        spread=float(drops.std()) * width,
        reach=width,
        assumed_range=None if declared else (low, high),
    )


def samples_needed(
    threshold: float, drop: float, spread: float, reach: float, confidence: float
) -> int | None:
    """About how many samples would show a drop of at most the threshold, if they are like these.

    Returns:
        The number, to two digits; None where no number would, the drop itself being as large.
    """
    room, tail = threshold - drop, (1 - confidence) / 2
    if room <= 0:
        return None

    def beyond(log_number: float) -> float:
        return _end_above_mean(exp(log_number), spread, reach, tail) - room

    number = exp(optimize.brentq(beyond, -50, 200)) if beyond(200) < 0 < beyond(-50) else 1
    step = 10 ** max(0, len(str(ceil(number))) - 2)
    return ceil(number / step) * step


def _end_above_mean(n: float, spread: float, reach: float, tail: float) -> float:
    """How far the interval ends above the mean: a normal error, and one more case at its worst."""
    error, case = spread / sqrt(n), reach / n
    if case > 1000 * error:
        return -log(tail) * case
    with np.errstate(over="ignore"):
        return float(stats.exponnorm.ppf(1 - tail, case / error, scale=error))


def _mean_interval(values: np.ndarray, low: float, high: float, confidence: float) -> Ends:
    tail = (1 - confidence) / 2
    return -float(upper_bound(-values, -low, tail)), float(upper_bound(values, high, tail))


def _scaled(ends: Ends, width: float, origin: float = 0.0) -> Ends:
    return origin + width * ends[0], origin + width * ends[1]
