"""Optimal Brain Surgeon: what the kept weights become when others are removed."""

from typing import Literal

from torch import Tensor

from mfac_compress.mfac.inverse import InverseFisher

Update = Literal["joint", "single", "none"]


def remove_weights(
    weights: Tensor, mask: Tensor, inverse: InverseFisher | None, update: Update
) -> Tensor:
    """Set the masked-out weights to zero and correct the others.

    Args:
        weights: w. Shape ``[d]``.
        mask: True = kept. Shape ``[d]``.
        inverse: F⁻¹; may be None for ``update="none"``.
        update: ``joint`` solves for the whole removed set; ``single`` adds up the corrections that
            each removed weight would get on its own, as the paper does; ``none`` corrects nothing.

    Returns:
        The new weights, exactly +0 where masked out. Shape ``[d]``.

    Example:
        >>> import torch
        >>> inverse = InverseFisher.build(torch.tensor([[1.0, 1.0]]), damping=1e-6)
        >>> remove_weights(torch.tensor([1.0, 2.0]), torch.tensor([False, True]), inverse, "joint")
        tensor([0.0000, 3.0000])
    """
    if update == "none" or inverse is None:
        return weights.masked_fill(~mask, 0)
    if update == "joint":
        return inverse.joint_update(weights, mask)
    return _single_update(weights, mask, inverse)


def _single_update(weights: Tensor, mask: Tensor, inverse: InverseFisher) -> Tensor:
    """w − F⁻¹ (w_Q / diag F⁻¹): the sum of equation 1's corrections over the removed set Q."""
    removed = weights.masked_fill(mask, 0) / inverse.diagonal().to(weights)
    return (weights - inverse.ihvp(removed)).masked_fill(~mask, 0)
