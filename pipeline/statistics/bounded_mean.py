"""How large the mean of a bounded quantity may be, after n samples of it.

Student's t counts on the samples to show how the quantity spreads. Where it drops rarely and far,
30 samples often show nothing of that. The bound here adds one sample at the far end of the range:
with weights D ~ Dirichlet(1, ..., 1) over the n + 1 values, it is the quantile of Σ Dᵢ xᵢ. For
quantities of two values that is the exact interval of Clopper and Pearson. It scales with the unit,
depends on no order and no random draw, and nears the normal interval as n grows.

Its coverage is proven for two values and conjectured for all others; no counterexample is known.

References:
    Gaffke (2005), Three test statistics for a nonparametric one-sided hypothesis on the mean of a
    nonnegative variable, Mathematical Methods of Statistics 14.
    Learned-Miller, Thomas (2019), A new confidence interval for the mean of a bounded random
    variable, arXiv:1905.06208.
"""

import numpy as np
from scipy.special import ndtr

_HALVINGS = 45
_SMALLEST_TILT = -40.0
"""Logarithm of the smallest tilt: with it the bound is the end of the range."""


def upper_bound(values: np.ndarray, top: float, tail: float) -> np.ndarray:
    """Upper confidence bound of a mean, for each row of samples.

    Args:
        values: Samples. Shape ``[..., n]``.
        top: Most that a value can be.
        tail: Most that the mean lies above the bound, as a share of cases: 0.025 for the upper end
            of a two-sided interval at 95%. In (0, 0.5).
    Returns:
        Bounds, at most ``top``. Shape ``[...]``.
    """
    with np.errstate(all="ignore"):  # exp underflows far from the mean
        return _upper_bound(top - np.asarray(values, dtype=np.float64), top, tail)


def _upper_bound(gaps: np.ndarray, top: float, tail: float) -> np.ndarray:
    # Divided by the largest gap, so that the bound scales exactly with the unit.
    scale = gaps.max(-1, keepdims=True)
    gaps = gaps / np.where(scale == 0, 1, scale)
    low = np.full(scale.shape, _SMALLEST_TILT)
    high = np.full(scale.shape, np.log(gaps.shape[-1]) + 6)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_too_high = _tail(gaps, np.exp(middle))[0] < tail
        low, high = np.where(is_too_high, middle, low), np.where(is_too_high, high, middle)
    return top - (_tail(gaps, np.exp(low))[1] * scale)[..., 0]


def _tail(gaps: np.ndarray, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the mean of the weights tilted by θ lies, and how seldom Σ Dᵢ xᵢ lies above it.

    P(Σ Dᵢ xᵢ > t) = P(Σ Eᵢ (xᵢ − t) > 0) with exponential Eᵢ. Its saddlepoint has a closed form
    where t is given by θ: with gᵢ the gaps to the top, 0 for the added sample, and wᵢ ∝ 1/(θ + gᵢ),
    t lies G = Σ wᵢ gᵢ below the top.

    Args:
        gaps: gᵢ of the samples. Shape ``[..., n]``.
        tilt: θ, from 0 (the end of the range) to ∞ (the mean). Shape ``[..., 1]``.
    Returns:
        The tail, and G; both of shape ``[..., 1]``.
    References:
        Lugannani, Rice (1980), Saddle point approximation for the distribution of the sum of
        independent random variables, Advances in Applied Probability 12. Within 0.3% of the exact
        bound from 2 samples on, and on its far side.
    """
    weights = 1 / (tilt + gaps)
    G = (weights * gaps).sum(-1, keepdims=True) / (weights.sum(-1, keepdims=True) + 1 / tilt)
    log_ratio = np.log1p((gaps - G) / (tilt + G)).sum(-1, keepdims=True) + np.log1p(-G / (tilt + G))
    curvature = (((gaps - G) * weights) ** 2).sum(-1, keepdims=True) + (G / tilt) ** 2
    r = np.sqrt(2 * np.maximum(log_ratio, np.finfo(np.float64).tiny))
    q = np.sqrt(np.maximum(curvature, np.finfo(np.float64).tiny))
    density = np.exp(-(r**2) / 2) / np.sqrt(2 * np.pi)
    return ndtr(-r) + density * (1 / q - 1 / r), G
