"""Saliency, the increase of the loss if a weight is removed, and the choice of weights."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac_compress.mfac.inverse import InverseFisher


def obs_saliency(weights: Tensor, inverse: InverseFisher) -> Tensor:
    """Return the increase of the quadratic loss when one weight is removed, the others adjusted.

    ρ_q = w_q² / (2 [F⁻¹]_qq). Shape ``[d]`` -> ``[d]``.

    References:
        Frantar, Kurtic, Alistarh (2021), M-FAC, equation 1.
    """
    return weights.square() / (2 * inverse.diagonal().to(weights))


def magnitude_saliency(weights: Tensor) -> Tensor:
    """w². Shape ``[d]`` -> ``[d]``."""
    return weights.square()


@dataclass(frozen=True)
class Budget:
    """Columns of the flat vector that compete with each other, and how many to remove.

    Args:
        ranges: Half-open ``(start, stop)`` ranges of columns.
        sparsity: Share of these columns to remove, in [0, 1).
    """

    ranges: tuple[tuple[int, int], ...]
    sparsity: float

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    @property
    def removed(self) -> int:
        """Number of columns to remove: at least the requested share, never all."""
        rounded_up = math.ceil(self.sparsity * self.size - 1e-6)
        return min(rounded_up, self.size - 1)


def select_mask(saliency: Tensor, budgets: Iterable[Budget], mask: Tensor) -> Tensor:
    """Remove the least salient weights of each budget.

    Args:
        saliency: Shape ``[d]``.
        budgets: Together they cover every column once.
        mask: True = kept so far. Removed weights stay removed. Shape ``[d]``.

    Returns:
        The new mask, a subset of ``mask``; each budget removes exactly ``budget.removed`` columns
        (more only where ``mask`` already removes more). Of equal saliencies the first columns are
        removed. Shape ``[d]``.
    """
    ranked = saliency.masked_fill(~mask, -1)
    selected = mask.clone()
    for budget in budgets:
        columns = _columns(budget.ranges, saliency.device)
        order = torch.argsort(ranked[columns], stable=True)
        selected[columns[order[: budget.removed]]] = False
    return selected


def _columns(ranges: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in ranges])
