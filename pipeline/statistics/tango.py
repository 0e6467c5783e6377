"""The score interval of a difference of paired proportions: of metrics with two values a sample."""

from math import sqrt
from statistics import NormalDist

from scipy import optimize


def tango_interval(lost: int, gained: int, n: int, confidence: float) -> tuple[float, float]:
    """Score interval of (lost − gained) / n for paired 0/1 values.

    It is not empty even where all samples agree: z²/(n + z²) wide on either side.

    Args:
        lost: Samples that were right before and are not any more.
        gained: Samples that are right only after.
        n: All samples.
        confidence: For example 0.95, two-sided.

    References:
        Tango (1998), Equivalence test and confidence interval for the difference in proportions
        for the paired-sample design, Statistics in Medicine 17, equations 7 to 9.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return -_upper(gained, lost, n, z), _upper(lost, gained, n, z)


def _upper(lost: int, gained: int, n: int, z: float) -> float:
    """The difference above the estimate at which the score falls to −z."""
    if lost == n:
        return 1.0
    estimate = (lost - gained) / n
    return optimize.brentq(lambda d: _score(lost, gained, n, d) + z, estimate, 1 - 1e-12)


def _score(lost: int, gained: int, n: int, difference: float) -> float:
    """How many standard errors the counts lie above a true difference."""
    A = 2 * n
    B = -lost - gained + (2 * n - lost + gained) * difference
    C = -gained * difference * (1 - difference)
    q = (sqrt(B * B - 4 * A * C) - B) / (2 * A)
    variance = n * (2 * q + difference * (1 - difference))
    return (lost - gained - n * difference) / sqrt(variance) if variance > 0 else 0.0
