"""Saliencies from removing weights one after the other, adjusting the others each time.

Within a block the least salient weight is removed, the others are corrected, the inverse is
restricted to the remaining weights, and so on until the block is empty. When one of two correlated
weights is removed, the saliency of the other grows; independent saliencies do not show this.

References:
    Frantar and Alistarh (2022), Optimal Brain Compression, algorithm 1.
    Kuznedelev et al. (2023), CAP: correlation-aware pruning, section 3.
"""

import torch
from torch import Tensor

from mfac_compress.mfac.block_inverse import BlockInverse


def sequential_saliency(weights: Tensor, mask: Tensor, inverse: BlockInverse) -> Tensor:
    """Return the increase of the loss by each weight's removal at the time of its removal.

    Within a block the result never falls from one removal to the next, so that the least salient
    weights of all blocks are, in each block, the ones removed first.

    Args:
        weights: w. Shape ``[d]``.
        mask: True = kept so far; removed weights get 0. Shape ``[d]``.
        inverse: F⁻¹ by blocks.

    Returns:
        Shape ``[d]``, dtype of ``weights``.
    """
    result = torch.zeros_like(weights)
    for run, fisher in inverse.blocks():
        saliency = _remove_all(fisher, run.to_blocks(weights).to(fisher), run.to_blocks(mask))
        result[run.start : run.stop] = run.from_blocks(saliency).to(weights)
    return result


def _remove_all(fisher: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """Remove all weights, one of each block at a time. ``[n, B, B]``, ``[n, B]``, ``[n, B]``."""
    P = _kept_inverse(fisher, keep)
    w, alive = weights.clone(), keep.clone()
    saliency, highest = torch.zeros_like(w), torch.zeros_like(w[:, :1])
    for _ in range(int(keep.sum(dim=1).max())):
        loss = w.square() / (2 * P.diagonal(dim1=-2, dim2=-1))
        cost, q = loss.masked_fill(~alive, torch.inf).min(dim=1, keepdim=True)
        some = cost.isfinite()  # blocks that are not empty yet
        highest = torch.where(some, torch.maximum(highest, cost), highest)
        saliency = torch.where(some, saliency.scatter(1, q, highest), saliency)
        column = P.gather(2, q.unsqueeze(1).expand(-1, P.shape[1], 1)) * some.unsqueeze(-1)
        pivot = P.diagonal(dim1=-2, dim2=-1).gather(1, q).unsqueeze(-1)
        scaled = torch.where(some.unsqueeze(-1), column / pivot, 0)
        w -= (scaled * w.gather(1, q).unsqueeze(-1)).squeeze(-1)
        P.baddbmm_(scaled, column.mT, alpha=-1)
        alive &= ~(some & torch.zeros_like(alive).scatter(1, q, True))
    return saliency


def _kept_inverse(fisher: Tensor, keep: Tensor) -> Tensor:
    """F_KK⁻¹ in the kept rows and columns, zero elsewhere."""
    kept = fisher * (keep.unsqueeze(-1) & keep.unsqueeze(-2))
    kept.diagonal(dim1=-2, dim2=-1).masked_fill_(~keep, 1)
    P = torch.cholesky_inverse(torch.linalg.cholesky(kept))
    return P * (keep.unsqueeze(-1) & keep.unsqueeze(-2))
