"""The median of a sample and a confidence interval for the median of its distribution."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A median and the bounds of its confidence interval."""

    median: float
    """Of the values."""
    low: float
    """Lower bound of the interval."""
    high: float
    """Upper bound of the interval."""


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return a confidence interval for the median without assuming a distribution.

    The interval runs from the k-th smallest to the k-th largest value, with the largest k at which
    it contains the median with at least the given probability.

    Args:
        values: Independent values. Length n.
        confidence: Probability, at least, that the interval contains the median.
    Returns:
        Median and interval, in the unit of the values.
    Raises:
        ValueError: If n is too small for the confidence; 95% needs six values.
    References:
        scipy.stats.quantile_test; David, Nagaraja (2003), Order Statistics, section 7.1.
    """
    from scipy.stats import quantile_test

    low, high = quantile_test(values, p=0.5).confidence_interval(confidence)
    if not low <= high:  # NaN if there are too few values for the confidence
        raise ValueError(
            f"An interval of {confidence:.0%} confidence needs more values. "
            f"Got {len(values)}. Six are enough for 95%."
        )
    return Interval(float(np.median(values)), float(low), float(high))
