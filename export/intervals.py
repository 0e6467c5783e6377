"""The median of a sample and an interval for the median of what it was drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A median and the ends of its confidence interval."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Bound the median without assuming a distribution.

    The interval runs from the k-th smallest to the k-th largest value, k the largest at which it
    holds the median with the probability asked for.

    Args:
        values: Independent values. Length n.
        confidence: Least probability that the interval holds the median.
    Returns:
        Median and interval, in the unit of the values.
    Raises:
        ValueError: If n is too small for the confidence; 95% takes six values.
    References:
        scipy.stats.quantile_test; David, Nagaraja (2003), Order Statistics, section 7.1.
    """
    from scipy.stats import quantile_test

    low, high = quantile_test(values, p=0.5).confidence_interval(confidence)
    if not low <= high:  # NaN where no values are enough for the confidence
        raise ValueError(
            f"An interval of {confidence:.0%} confidence needs more values. "
            f"Got {len(values)}. Six are enough for 95%."
        )
    return Interval(float(np.median(values)), float(low), float(high))
