"""Batches of symmetric matrices, of which one half is stored.

Rectangular full packed format: of a symmetric A of even side 2h, split into A₁₁, A₁₂, A₂₂ of side
h, the upper half of A₁₁ and the lower half of A₂₂ fill one ``[h, h + 1]`` matrix, with A₁₂ beside
it. It takes half the memory of A and needs no indices.

References:
    Gustavson, Waśniewski, Dongarra, Langou (2010), Rectangular Full Packed Format for Cholesky's
    Algorithm.
"""

import numpy as np
import torch
from torch import Tensor

# Elements processed at a time: just enough to make up for the cost of a call, so that they stay in
# a core's own cache.
_CPU_ELEMENTS, _ACCELERATOR_ELEMENTS = 1 << 18, 1 << 26
# Rows of one product: each halves what is computed twice, but narrow products are slow.
_CPU_BAND = 32


def blocks_at_once(elements: int, device: torch.device) -> int:
    """Return how many blocks of ``elements`` elements each to process at a time."""
    return max(1, (_CPU_ELEMENTS if device.type == "cpu" else _ACCELERATOR_ELEMENTS) // elements)


def packed_zeros(count: int, size: int, device: torch.device | str) -> Tensor:
    """Allocate ``count`` packed zero matrices of side ``size``. Shape ``[count, h, 2h + 1]``."""
    half = (size + 1) // 2
    shape = (count, half, 2 * half + 1)
    if torch.device(device).type == "cpu":
        # NumPy requests huge pages, torch does not: mapping small pages takes as long as filling
        # the memory several times.
        return torch.from_numpy(np.zeros(shape))
    return torch.zeros(shape, dtype=torch.float64, device=device)


def add_products(packed: Tensor, rows: Tensor) -> None:
    """Add AᵀA of each A in ``rows`` to the packed matrices.

    Args:
        packed: Shape ``[n, h, 2h + 1]``. Changed.
        rows: Shape ``[n, k, 2h]``; the products are computed in its dtype.
    """
    half = packed.shape[1]
    first, second = rows[..., :half], rows[..., half:]
    band = _CPU_BAND if rows.device.type == "cpu" else half
    for start in range(0, half, band):
        stop = min(start + band, half)
        upper = torch.bmm(first[..., start:stop].mT, rows[..., start:])
        lower = torch.bmm(second[..., start:stop].mT, second[..., :stop])
        packed[:, start:stop, start + 1 :] += upper.triu_()
        packed[:, start:stop, :stop] += lower.tril_(start)


def unpack_upper(packed: Tensor, out: Tensor) -> None:
    """Unpack the upper halves into square matrices; values below the diagonals are undefined.

    Shape ``[n, h, 2h + 1]`` -> ``[n, 2h, 2h]``.
    """
    half = packed.shape[1]
    out[:, :half] = packed[..., 1:]
    out[:, half:, half:] = packed[..., :half].mT


def packed_diagonal(packed: Tensor, size: int) -> Tensor:
    """Return the diagonals. Shape ``[n, h, 2h + 1]`` -> ``[n, size]``."""
    first = packed[..., 1:].diagonal(dim1=-2, dim2=-1)
    second = packed.diagonal(dim1=-2, dim2=-1)
    return torch.cat([first, second], dim=-1)[:, :size]


def symmetrize(upper: Tensor) -> Tensor:
    """Fill symmetric matrices from their upper halves. Shape ``[..., n, n]``."""
    return upper.triu() + upper.triu(1).mT


def amplification(R: Tensor, scale: Tensor, diagonal: Tensor) -> float:
    """Return the factor from relative errors of F to those of the diagonal of X = F⁻¹ = RᵀR.

    An error E of F changes X_jj by x_jᵀ E x_j. If E_ik is a random fraction of √(F_ii F_kk), this
    is the same fraction of Σ_i F_ii X_ij². Relative to X_jj it is Σ_i (F_ii X_ii) C_ij² with the
    correlations C_ij = X_ij / √(X_ii X_jj), for which float32 is accurate enough.
    """
    R = (R * diagonal.rsqrt().unsqueeze(-2)).float()
    correlations = torch.bmm(R.mT, R).square_()
    return torch.bmm((scale * diagonal).float().unsqueeze(-2), correlations).max().item()


def amplification_bound(scale: Tensor, diagonal: Tensor) -> float:
    """An upper bound of :func:`amplification` without a product: no correlation is above 1."""
    return (scale * diagonal).max().item() * scale.shape[-1]
