"""The median of a sample and an interval for the median of what it was drawn from."""

import math
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

    The interval runs from the k-th smallest to the k-th largest value. The median lies below it
    with probability P(B < k), B ~ Binomial(n, 1/2), and above it with the same; k is the largest
    with 2 P(B < k) <= 1 - confidence.

    Args:
        values: Independent values. Length n.
        confidence: Least probability that the interval holds the median.
    Returns:
        Median and interval, in the unit of the values.
    Raises:
        ValueError: If n is too small for the confidence; 95% takes six values.
    References:
        David, Nagaraja (2003), Order Statistics, section 7.1.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    k = _rank(len(ordered), confidence)
    if k == 0:
        raise ValueError(
            f"An interval of {confidence:.0%} confidence needs more values. "
            f"Got {len(ordered)}. Six are enough for 95%."
        )
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[-k]))


def _rank(n: int, confidence: float) -> int:
    """Find the largest k with 2 P(B < k) <= 1 - confidence, B ~ Binomial(n, 1/2); 0 if none."""
    k, outside = 0, 2 / 2**n
    while outside <= 1 - confidence:
        k += 1
        outside += 2 * math.comb(n, k) / 2**n
    return k
