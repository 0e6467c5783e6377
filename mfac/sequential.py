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
from mfac_compress.mfac.cholesky import inverse_factor
from mfac_compress.mfac.joint import kept_blocks

# A removal is some twenty operations on one row of each block, so more blocks are taken at a time
# than where a call is a matrix product.
_TIMES_THE_BLOCKS = 8
# Removals after which the inverse is updated, by one matrix product.
_REMOVALS_AT_ONCE = 32


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
    for run, fisher in inverse.blocks(_TIMES_THE_BLOCKS):
        saliency = _remove_all(fisher, run.to_blocks(weights).to(fisher), run.to_blocks(mask))
        result[run.start : run.stop] = run.from_blocks(saliency).to(weights)
    return result


def _remove_all(fisher: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """Remove all weights, one of each block at a time. ``[n, B, B]``, ``[n, B]``, ``[n, B]``.

    Removing q turns P = F⁻¹ into P − vvᵀ with v = P_q / √P_qq, and w into w − v w_q / √P_qq. The
    rows v of the last removals are kept apart from P until there are enough of them for a product:
    a removal needs only the diagonal and one row of what P has become.
    """
    P = _kept_inverse(fisher, keep)
    w, alive, diagonal = weights.clone(), keep.clone(), P.diagonal(dim1=-2, dim2=-1).clone()
    saliency, highest = torch.zeros_like(w), torch.zeros_like(w[:, :1])
    blocks = torch.arange(len(P), device=P.device)
    removals = int(keep.sum(dim=1).max())
    for done in range(0, removals, _REMOVALS_AT_ONCE):
        V = P.new_zeros(len(P), min(_REMOVALS_AT_ONCE, removals - done), P.shape[-1])
        for i in range(V.shape[1]):
            loss = w.square() / (2 * diagonal)
            cost, q = loss.masked_fill(~alive, torch.inf).min(dim=1, keepdim=True)
            some = cost.isfinite()  # blocks that are not empty yet
            highest = torch.where(some, torch.maximum(highest, cost), highest)
            saliency = torch.where(some, saliency.scatter(1, q, highest), saliency)
            column = q.squeeze(1)
            row = P[blocks, column] - (V[blocks, :i, column].unsqueeze(1) @ V[:, :i]).squeeze(1)
            root = row.gather(1, q).sqrt()
            V[:, i] = v = torch.where(some, row / root, 0)
            w -= v * torch.where(some, w.gather(1, q) / root, 0)
            diagonal -= v.square()
            alive.scatter_(1, q, alive.gather(1, q) & ~some)
        P.baddbmm_(V.mT, V, alpha=-1)
    return saliency


def _kept_inverse(fisher: Tensor, keep: Tensor) -> Tensor:
    """F_KK⁻¹ in the kept rows and columns, zero elsewhere."""
    R = inverse_factor(kept_blocks(fisher, keep))
    return (R.mT @ R).mul_(keep.unsqueeze(-1) & keep.unsqueeze(-2))
