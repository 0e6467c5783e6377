"""Cholesky factors of batches of small matrices, by matrix products.

LAPACK takes the matrices one at a time, at a fraction of the rate of products. Here A = UᵀU is
found in bands of rows: with J the rows of a band and I those before it,

    U_JJᵀU_JJ = A_JJ − U_IJᵀU_IJ,   R_J = U_JJ⁻ᵀ,   U_JK = R_J (A_JK − U_IJᵀU_IK)

for the columns K after it. LAPACK factors the bands' own blocks; all else is products of the whole
batch, wide enough for the processor's full rate. A single matrix is left to LAPACK, and on an
accelerator all are left to its library.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows of a band: up to this side LAPACK is faster than products.
_BAND = 32


def inverse_factor(upper: Tensor, out: Tensor | None = None) -> Tensor:
    """Return R = U⁻ᵀ of A = UᵀU, so that A⁻¹ = RᵀR. Shape ``[n, s, s]``.

    With J the rows of a band and I those before it, R_JI = −R_J U_IJᵀ R_II.

    Args:
        upper: A. Shape ``[n, s, s]``; only its upper halves are read. Its diagonal is kept, what
            is above is overwritten.
        out: Where to write R, zero above the diagonals; None for a new tensor.

    Raises:
        torch.linalg.LinAlgError: If a matrix is not positive definite.
    """
    R = torch.zeros_like(upper, memory_format=torch.contiguous_format) if out is None else out
    for rows, own in _factored_bands(upper):
        before = slice(rows.start)
        R[:, rows, rows] = own
        if rows.start:
            coupling = upper[:, before, rows].mT @ R[:, before, before]
            R[:, rows, before] = torch.bmm(own, coupling).neg_()
    return R


def solve(upper: Tensor, x: Tensor) -> Tensor:
    """Return A⁻¹x, for half the work of :func:`inverse_factor`. Shape ``[n, s]`` -> ``[n, s]``.

    Args:
        upper: A, read and overwritten as in :func:`inverse_factor`. Shape ``[n, s, s]``.
        x: A vector for each matrix.

    Raises:
        torch.linalg.LinAlgError: If a matrix is not positive definite.
    """
    y, bands = x.unsqueeze(-1).clone(), []
    for rows, own in _factored_bands(upper):
        before = slice(rows.start)
        y[:, rows] = own @ (y[:, rows] - upper[:, before, rows].mT @ y[:, before])
        bands.append((rows, own))
    for rows, own in reversed(bands):
        after = slice(rows.stop, None)
        y[:, rows] = own.mT @ (y[:, rows] - upper[:, rows, after] @ y[:, after])
    return y.squeeze(-1)


def _factored_bands(upper: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows J and U_JJ⁻ᵀ of each band; then U_JK is written over A_JK."""
    size = upper.shape[-1]
    band = _BAND if len(upper) > 1 and upper.device.type == "cpu" else size
    for start in range(0, size, band):
        rows, before = slice(start, min(start + band, size)), slice(start)
        remaining = upper[:, rows, start:]
        if start:
            coupling = upper[:, before, rows].mT
            remaining = torch.baddbmm(remaining, coupling, upper[:, before, start:], alpha=-1)
        own = _lapack_inverse_factor(remaining[..., : rows.stop - start])
        if rows.stop < size:
            upper[:, rows, rows.stop :] = own @ remaining[..., rows.stop - start :]
        yield rows, own


def _lapack_inverse_factor(upper: Tensor) -> Tensor:
    identity = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device)
    L = torch.linalg.cholesky(upper.mT)
    return torch.linalg.solve_triangular(L, identity, upper=False)
