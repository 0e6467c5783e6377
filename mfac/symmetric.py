"""Batches of symmetric matrices: one half stored, factored by matrix products.

Rectangular full packed format: of a symmetric A of even side 2h, split into A₁₁, A₂₁, A₂₂ of side
h, the lower half of A₁₁ and the transposed lower half of A₂₂ fill one ``[h + 1, h]`` matrix, with
A₂₁ below it. It takes half the memory of A and needs no indices.

References:
    Gustavson, Waśniewski, Dongarra, Langou (2010), Rectangular Full Packed Format for Cholesky's
    Algorithm.
"""

import numpy as np
import torch
from torch import Tensor

# Up to this side LAPACK is faster than the products of the recursion.
_SMALL = 32
# Elements processed at a time: just enough to make up for the cost of a call, so that they stay in
# the shared cache.
_CPU_ELEMENTS, _CUDA_ELEMENTS = 1 << 20, 1 << 26


def blocks_at_once(elements: int, device: torch.device) -> int:
    """Return how many blocks of ``elements`` elements each to process at a time."""
    return max(1, (_CUDA_ELEMENTS if device.type == "cuda" else _CPU_ELEMENTS) // elements)


def packed_zeros(count: int, size: int, device: torch.device | str) -> Tensor:
    """Allocate ``count`` packed zero matrices of side ``size``. Shape ``[count, 2h + 1, h]``."""
    half = (size + 1) // 2
    shape = (count, 2 * half + 1, half)
    if torch.device(device).type == "cpu":
        # NumPy requests huge pages, torch does not: mapping small pages takes as long as filling
        # the memory several times.
        return torch.from_numpy(np.zeros(shape))
    return torch.zeros(shape, dtype=torch.float64, device=device)


def add_products(packed: Tensor, rows: Tensor) -> None:
    """Add AᵀA of each A in ``rows`` to the packed matrices.

    Args:
        packed: Shape ``[n, 2h + 1, h]``. Changed.
        rows: Shape ``[n, k, 2h]``; the products are computed in its dtype.
    """
    half = packed.shape[-1]
    left = torch.bmm(rows.mT, rows[..., :half])
    corner = torch.bmm(rows[..., half:].mT, rows[..., half:])
    left[:, :half].tril_()
    packed[:, 1:] += left
    packed[:, :half] += corner.triu_()


def unpack_lower(packed: Tensor, out: Tensor) -> None:
    """Unpack the lower halves into square matrices; values above the diagonals are undefined.

    Shape ``[n, 2h + 1, h]`` -> ``[n, 2h, 2h]``.
    """
    half = packed.shape[-1]
    out[:, :, :half] = packed[:, 1:]
    out[:, half:, half:] = packed[:, :half].mT


def packed_diagonal(packed: Tensor, size: int) -> Tensor:
    """Return the diagonals. Shape ``[n, 2h + 1, h]`` -> ``[n, size]``."""
    first = packed[:, 1:].diagonal(dim1=-2, dim2=-1)
    second = packed.diagonal(dim1=-2, dim2=-1)
    return torch.cat([first, second], dim=-1)[:, :size]


def symmetrize(lower: Tensor) -> Tensor:
    """Fill symmetric matrices from their lower halves. Shape ``[..., n, n]``."""
    return lower.tril() + lower.tril(-1).mT


def inverse_factor(lower: Tensor, out: Tensor | None = None) -> Tensor:
    """Return R = L⁻¹ of A = LLᵀ, so that A⁻¹ = RᵀR. Shape ``[n, s, s]``.

    LAPACK processes small matrices one at a time, much slower than products. Halving A,

        L₂₁ = A₂₁R₁₁ᵀ,   A₂₂ − L₂₁L₂₁ᵀ = L₂₂L₂₂ᵀ,   R₂₁ = −R₂₂L₂₁R₁₁,

    leaves most of the work to batched products.

    Args:
        lower: A. Shape ``[n, s, s]``; only its lower halves are read.
        out: Where to write R, zero above the diagonals; None for a new tensor.

    Raises:
        torch.linalg.LinAlgError: If a matrix is not positive definite.
    """
    R = torch.zeros_like(lower, memory_format=torch.contiguous_format) if out is None else out
    smallest = lower.shape[-1] if lower.is_cuda else _SMALL
    _fill_inverse_factor(lower, R, smallest)
    return R


def _fill_inverse_factor(A: Tensor, R: Tensor, smallest: int) -> None:
    size = A.shape[-1]
    if size <= smallest:
        identity = torch.eye(size, dtype=A.dtype, device=A.device)
        L = torch.linalg.cholesky(A)
        R.copy_(torch.linalg.solve_triangular(L, identity, upper=False))
        return
    half = size // 2
    first, second = slice(None, half), slice(half, None)
    R11, R22 = R[:, first, first], R[:, second, second]
    _fill_inverse_factor(A[:, first, first], R11, smallest)
    L21 = A[:, second, first] @ R11.mT
    rest = torch.baddbmm(A[:, second, second], L21, L21.mT, alpha=-1)
    _fill_inverse_factor(rest, R22, smallest)
    R[:, second, first] = -(R22 @ (L21 @ R11))


def amplification(R: Tensor, scale: Tensor, diagonal: Tensor) -> float:
    """Return the factor from relative errors of F to those of the diagonal of X = F⁻¹ = RᵀR.

    An error E of F changes X_jj by x_jᵀ E x_j. If E_ik is a random fraction of √(F_ii F_kk), this
    is the same fraction of Σ_i F_ii X_ij². Relative to X_jj it is Σ_i (F_ii X_ii) C_ij² with the
    correlations C_ij = X_ij / √(X_ii X_jj), for which float32 is accurate enough.
    """
    R = (R * diagonal.rsqrt().unsqueeze(-2)).float()
    correlations = torch.bmm(R.mT, R).square_()
    return torch.bmm((scale * diagonal).float().unsqueeze(-2), correlations).max().item()
