"""What it costs to remove weights one after the other, each time making up for the last.

Within a block the cheapest weight is removed, the others are corrected, the inverse is restricted
to what is left, and so on until the block is empty. A weight that stood in for another becomes
dearer when that one goes; independent saliencies do not see this.

References:
    Frantar and Alistarh (2022), Optimal Brain Compression, algorithm 1.
    Kuznedelev et al. (2023), CAP: correlation-aware pruning, section 3.
"""

import torch
from torch import Tensor

from mfac_compress.mfac.block_inverse import BlockInverse


def sequential_saliency(weights: Tensor, mask: Tensor, inverse: BlockInverse) -> Tensor:
    """The loss of each weight's removal at the time when it goes.

    Within a block it never falls from one removal to the next, so the cheapest weights of all
    blocks together are, in each block, the ones that went first.

    Args:
        weights: w. Shape ``[d]``.
        mask: True = kept so far; removed weights get 0. Shape ``[d]``.
        inverse: F⁻¹ by blocks.

    Returns:
        Shape ``[d]``, dtype of ``weights``.
    """
    result = torch.zeros_like(weights)
    for run, fisher in inverse.blocks():
        saliency = _remove_all(fisher, run.cut(weights).to(fisher), run.cut(mask))
        result[run.start : run.stop] = run.join(saliency).to(weights)
    return result


def _remove_all(fisher: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """Empty several blocks, a weight of each at a time. ``[n, B, B]``, ``[n, B]``, ``[n, B]``."""
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
    """F_KK⁻¹ in its place, zero elsewhere."""
    kept = fisher * (keep.unsqueeze(-1) & keep.unsqueeze(-2))
    kept.diagonal(dim1=-2, dim2=-1).masked_fill_(~keep, 1)
    P = torch.cholesky_inverse(torch.linalg.cholesky(kept))
    return P * (keep.unsqueeze(-1) & keep.unsqueeze(-2))
