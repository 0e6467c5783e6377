"""The inverse through m x m matrices: the smaller representation where a block has B > m columns.

With S = mλI + GGᵀ = LLᵀ in float64 and V = L⁻¹G, block by block:

    F⁻¹x       = (x − Gᵀ S⁻¹ G x) / λ
    [F⁻¹]_jk   = (δ_jk − v_jᵀ v_k) / λ

G is read in slices of columns, so no second m x d matrix is allocated.
"""

import torch
from torch import Tensor

from mfac_compress.mfac.checks import check_indices, check_same_block, check_vector
from mfac_compress.mfac.columns import Columns
from mfac_compress.mfac.gram_factor import (
    GramFactor,
    column_errors,
    exact_factor,
    inverse_diagonal,
)
from mfac_compress.mfac.numerics import (
    SET_TOLERANCE,
    damping_error,
    error_of_sets,
    exact_products,
)
from mfac_compress.mfac.plan import count_cached_factors
from mfac_compress.mfac.window import GradientWindow

_COLUMNS_AT_ONCE = 1024
_ROUNDING = torch.finfo(torch.float64).eps


class WindowInverse:
    """F⁻¹ as the gradient window and one m x m matrix per block.

    Where the window's columns are part of a block that several processes share, all vectors
    ``[d]`` are this process's columns, and all processes make the same calls.

    Args:
        window: G, kept by reference.
        damping: λ.

    Raises:
        ValueError: If a gradient is not finite.
        PrecisionError: If the damping is too small for float64.
    """

    def __init__(self, window: GradientWindow, damping: float) -> None:
        gradients = window.held
        self.damping = damping
        self.partition = window.partition
        self.num_gradients, self.size = gradients.shape
        self._shift = self.num_gradients * damping
        self._blocks = [
            Columns(gradients, *bounds, window.device, window.on_disk, window.group)
            for run in window.partition
            for bounds in run.bounds
        ]
        dtype = torch.promote_types(torch.float32, gradients.dtype)
        self._diagonal = torch.empty(self.size, dtype=dtype, device=window.device)
        kept = count_cached_factors(window.partition, self.num_gradients, gradients.dtype)
        self._factors: dict[int, Tensor] = {}
        with exact_products():
            for columns in self._blocks:
                R, diagonal = inverse_diagonal(columns, self._shift, self.damping)
                self._diagonal[columns.start : columns.stop] = diagonal.to(self._diagonal)
                if kept == len(self._blocks):
                    self._factors[columns.start] = R

    def ihvp(self, x: Tensor) -> Tensor:
        check_vector(x, self.size)
        result = torch.empty_like(x)
        for columns in self._blocks:
            R = self._factor(columns)
            inner = R.mT @ (R @ columns.product(x))
            for G, at in columns.slices(torch.float64):
                result[at] = ((x[at].to(G) - G.mT @ inner) / self.damping).to(x)
        return result

    def diagonal(self) -> Tensor:
        return self._diagonal.clone()

    def element(self, j: int, k: int) -> float:
        check_indices(j, k, self.size)
        if j == k:
            return self._diagonal[j].item()
        for columns in self._blocks:
            if columns.start <= j < columns.stop and columns.start <= k < columns.stop:
                v, w = (self._factor(columns) @ columns.gather(torch.tensor([j, k]))).unbind(dim=1)
                return (-(v @ w) / self.damping).item()
        return 0.0

    def submatrices(self, columns: Tensor) -> Tensor:
        count, size = columns.shape
        result = torch.empty(count, size, size, dtype=torch.float64, device=self._diagonal.device)
        for block in self._blocks:
            inside = (columns >= block.start) & (columns < block.stop)
            check_same_block(inside == inside[:, :1])
            factor = exact_factor(block, self._shift, self.damping)
            largest, identity = 0.0, torch.eye(size).to(result)
            for numbers in inside[:, 0].nonzero().flatten().split(_COLUMNS_AT_ONCE // size + 1):
                G = block.gather(columns[numbers].flatten())
                V = factor.R @ G
                errors = column_errors(factor, G, V).view(-1, size) + _ROUNDING
                sets = V.mT.unflatten(0, (-1, size))
                found = identity - sets @ sets.mT
                largest = max(largest, error_of_sets(found, errors))
                result[numbers] = found / self.damping
            # One process must not raise while others wait for it.
            if block.all_reduce_max(largest) > SET_TOLERANCE:
                raise damping_error(self.damping, "float64 to judge several weights together")
        return result

    def joint_update(self, weights: Tensor, mask: Tensor) -> Tensor:
        """See :class:`~mfac_compress.mfac.fisher.Inverse`.

        With S_K = mλI + G_K G_Kᵀ, δ_K = G_Kᵀ S_K⁻¹ G_Q w_Q.
        """
        check_vector(weights, self.size)
        check_vector(mask, self.size)
        result = weights.masked_fill(~mask, 0)
        removed = weights.masked_fill(mask, 0)
        for columns in self._blocks:
            R = self._kept_factor(columns, mask)
            inner = R.mT @ (R @ columns.product(removed))
            for G, at in columns.slices(torch.float64):
                result[at] += (G.mT @ inner).masked_fill(~mask[at], 0).to(result)
        return result

    def solve_kept(self, x: Tensor, mask: Tensor) -> Tensor:
        """See :class:`~mfac_compress.mfac.fisher.Inverse`.

        F_KK⁻¹ x_K = (x_K − G_Kᵀ S_K⁻¹ G_K x_K) / λ.
        """
        check_vector(x, self.size)
        check_vector(mask, self.size)
        kept = x.masked_fill(~mask, 0)
        result = torch.empty_like(x)
        for columns in self._blocks:
            R = self._kept_factor(columns, mask)
            inner = R.mT @ (R @ columns.product(kept))
            for G, at in columns.slices(torch.float64):
                solved = (kept[at].to(G) - G.mT @ inner) / self.damping
                result[at] = solved.masked_fill(~mask[at], 0).to(x)
        return result

    def _kept_factor(self, columns: Columns, mask: Tensor) -> Tensor:
        """Return R of S_K over these columns."""
        factor = GramFactor.of(columns, self._shift, torch.float64, mask)
        if factor.norm_error == float("inf"):
            raise damping_error(self.damping, "float64 to factor the Fisher of the kept weights")
        return factor.R

    def _factor(self, columns: Columns) -> Tensor:
        """Return R of one block, recomputed if the factors are not cached."""
        if columns.start in self._factors:
            return self._factors[columns.start]
        return GramFactor.of(columns, self._shift, torch.float64).R
