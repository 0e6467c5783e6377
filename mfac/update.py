"""Optimal Brain Surgeon: what the kept weights become when others are removed."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mfac_compress.mfac.fisher import Inverse

Update = Literal["joint", "single", "none"]

_SMALLEST_STEP = 2.0**-14
_MISSES = 2  # The search ends after this many step sizes in a row that do not lower the loss.


def remove_weights(weights: Tensor, mask: Tensor, inverse: Inverse, update: Update) -> Tensor:
    """Set the masked-out weights to zero and correct the others.

    Args:
        weights: w. Shape ``[d]``.
        mask: True = kept. Shape ``[d]``.
        inverse: F⁻¹.
        update: ``joint`` solves for the whole removed set; ``single`` adds up the corrections for
            each weight removed on its own, as the paper does; ``none`` corrects nothing.

    Returns:
        The new weights, exactly +0 where masked out. Shape ``[d]``.

    Example:
        >>> import torch
        >>> from mfac_compress.mfac.fisher import fisher_of, invert
        >>> inverse = invert(fisher_of(torch.tensor([[1.0, 1.0]])), damping=1e-6)
        >>> remove_weights(torch.tensor([1.0, 2.0]), torch.tensor([False, True]), inverse, "joint")
        tensor([0.0000, 3.0000])
    """
    if update == "none":
        return weights.masked_fill(~mask, 0)
    if update == "joint":
        return inverse.joint_update(weights, mask)
    return _single_update(weights, mask, inverse)


def _single_update(weights: Tensor, mask: Tensor, inverse: Inverse) -> Tensor:
    """w − F⁻¹ (w_Q / diag F⁻¹): the sum of equation 1's corrections over the removed set Q."""
    removed = weights.masked_fill(mask, 0) / inverse.diagonal().to(weights)
    return (weights - inverse.ihvp(removed)).masked_fill(~mask, 0)


def line_search(loss_at: Callable[[float], float]) -> tuple[float, float]:
    """Choose the step size along −F_KK⁻¹ g_K by measuring the loss.

    OBS assumes that the model is at a minimum. After removal it is not, and the first-order term
    of the loss gives a descent direction. The step of the quadratic model, 1, is far too long: each
    block of F is solved as if it had to reduce the loss alone, while thousands of others do the
    same. So the search starts from a small step size and doubles it while the loss falls.

    Args:
        loss_at: Step size -> loss on held-out samples.

    Returns:
        The best step size, 0 if none lowers the loss, and its loss.
    """
    best, lowest, size, misses = 0.0, loss_at(0.0), _SMALLEST_STEP, 0
    while size <= 1 and misses < _MISSES:
        loss = loss_at(size)
        if loss < lowest:
            best, lowest, misses = size, loss, 0
        else:
            misses += 1
        size *= 2
    return best, lowest
