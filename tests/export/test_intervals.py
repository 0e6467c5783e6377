import math

import pytest

from mfac_compress.export import Interval, median_interval


def coverage(n, k):
    """Probability that the k-th smallest and k-th largest of n values enclose the median."""
    return sum(math.comb(n, below) for below in range(k, n - k + 1)) / 2**n


def test_ten_values_by_hand():
    # P(B <= 1) = 11/1024 is below 2.5%, P(B <= 2) = 56/1024 is not: second smallest to largest.
    values = [7, 1, 10, 3, 2, 9, 4, 8, 6, 5]
    assert median_interval(values) == Interval(median=5.5, low=2, high=9)


def test_six_values_give_their_range():
    assert median_interval([3, 1, 2, 6, 5, 4]) == Interval(median=3.5, low=1, high=6)


@pytest.mark.parametrize("n", [6, 7, 9, 20, 40, 101, 2000])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_it_is_the_narrowest_that_covers(n, confidence):
    k = int(median_interval(range(1, n + 1), confidence).low)
    assert coverage(n, k) >= confidence > coverage(n, k + 1)
    assert median_interval(range(1, n + 1), confidence).high == n + 1 - k


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match=r"Got 5\. Six are enough"):
        median_interval([1, 2, 3, 4, 5])
