"""Linear systems on the kept weights, with the Fisher given as blocks."""

from torch import Tensor

from mfac_compress.mfac.cholesky import solve


def joint_update_blocks(fisher: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """w_K + F_KK⁻¹ F_KQ w_Q of several blocks. Shapes ``[n, B, B]``, ``[n, B]``, ``[n, B]``."""
    removed = weights.masked_fill(keep, 0).unsqueeze(-1)
    coupling = (fisher @ removed).squeeze(-1)
    return weights.masked_fill(~keep, 0) + solve_kept_blocks(fisher, coupling, keep)


def solve_kept_blocks(fisher: Tensor, x: Tensor, keep: Tensor) -> Tensor:
    """F_KK⁻¹ x_K of several blocks, zero elsewhere.

    The kept and the removed set differ from block to block. Writing 1 on the diagonal of each
    removed row and column makes them one batch: the solution is zero there.
    """
    return solve(kept_blocks(fisher, keep), x.masked_fill(~keep, 0))


def kept_blocks(fisher: Tensor, keep: Tensor) -> Tensor:
    """F with the removed rows and columns replaced by those of the identity. ``[n, B, B]``."""
    kept = fisher * (keep.unsqueeze(-1) & keep.unsqueeze(-2))
    kept.diagonal(dim1=-2, dim2=-1).masked_fill_(~keep, 1)
    return kept
