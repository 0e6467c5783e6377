"""The inverse through m x m matrices: the smaller representation where a block has B >= m columns.

With S = mλI + GGᵀ = LLᵀ in float64 and V = L⁻¹G, block by block:

    F⁻¹x       = (x − Gᵀ S⁻¹ G x) / λ
    [F⁻¹]_jk   = (δ_jk − v_jᵀ v_k) / λ

G is read in slices of columns, so a second m x d matrix is never made.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mfac_compress.mfac.inverse import InverseFisher, check_damping
from mfac_compress.mfac.partition import BlockPartition

# Elements of G that are widened to float64 at a time.
_CHUNK_ELEMENTS = 1 << 22


class WindowInverse(InverseFisher):
    """F⁻¹ as the gradient window and one m x m Cholesky factor a block.

    Args:
        gradients: G, kept by reference. Shape ``[m, d]``.
        damping: λ.
        partition: The blocks.
    """

    def __init__(self, gradients: Tensor, damping: float, partition: BlockPartition) -> None:
        self.damping = check_damping(damping)
        self.partition = partition
        self.num_gradients, self.size = gradients.shape
        self._gradients = gradients
        self._bounds = [
            (start, min(start + run.size, run.stop))
            for run in partition
            for start in range(run.start, run.stop, run.size)
        ]
        self._factors = [self._factor(*bounds) for bounds in self._bounds]

    def ihvp(self, x: Tensor) -> Tensor:
        self._check_vector(x)
        result = torch.empty_like(x)
        for (start, stop), factor in zip(self._bounds, self._factors, strict=True):
            inner = self._sum(start, stop, lambda G, at: G @ x[at].to(G))
            inner = torch.cholesky_solve(inner.unsqueeze(-1), factor).squeeze(-1)
            for G, at in self._slices(start, stop):
                result[at] = ((x[at].to(G) - G.mT @ inner) / self.damping).to(x)
        return result

    def diagonal(self) -> Tensor:
        dtype = torch.promote_types(torch.float32, self._gradients.dtype)
        result = torch.empty(self.size, dtype=dtype, device=self._gradients.device)
        for (start, stop), factor in zip(self._bounds, self._factors, strict=True):
            for G, at in self._slices(start, stop):
                V = torch.linalg.solve_triangular(factor, G, upper=False)
                result[at] = ((1 - V.square().sum(dim=0)) / self.damping).to(dtype)
        return result

    def element(self, j: int, k: int) -> float:
        self._check_indices(j, k)
        for (start, stop), factor in zip(self._bounds, self._factors, strict=True):
            if start <= j < stop and start <= k < stop:
                V = torch.linalg.solve_triangular(
                    factor, self._gradients[:, [j, k]].to(factor), upper=False
                )
                return ((float(j == k) - V[:, 0] @ V[:, 1]) / self.damping).item()
        return 0.0

    def joint_update(self, weights: Tensor, mask: Tensor) -> Tensor:
        """See the base class. With S_K = mλI + G_K G_Kᵀ, δ_K = G_Kᵀ S_K⁻¹ G_Q w_Q."""
        self._check_vector(weights)
        self._check_vector(mask)
        result = weights.masked_fill(~mask, 0)
        removed = weights.masked_fill(mask, 0)
        for start, stop in self._bounds:
            coupling = self._sum(start, stop, lambda G, at: G @ removed[at].to(G))
            factor = self._factor(start, stop, mask)
            inner = torch.cholesky_solve(coupling.unsqueeze(-1), factor).squeeze(-1)
            for G, at in self._slices(start, stop):
                result[at] += (G.mT @ inner).masked_fill(~mask[at], 0).to(result)
        return result

    def _factor(self, start: int, stop: int, mask: Tensor | None = None) -> Tensor:
        """L of S = mλI + GGᵀ over the columns of one block, or over its kept ones only."""

        def gram(G: Tensor, at: slice) -> Tensor:
            kept = G if mask is None else G * mask[at]
            return kept @ kept.mT

        S = self._sum(start, stop, gram)
        S.diagonal().add_(self.num_gradients * self.damping)
        factor, info = torch.linalg.cholesky_ex(S)
        if info.any():
            raise ValueError(
                f"damping must be large enough for float64 to factor the Fisher. Got "
                f"{self.damping}, which vanishes beside the gradients. Try ten times more, or "
                "scale the loss down."
            )
        return factor

    def _sum(self, start: int, stop: int, term: Callable[[Tensor, slice], Tensor]) -> Tensor:
        parts = self._slices(start, stop)
        total = term(*next(parts))
        for G, at in parts:
            total += term(G, at)
        return total

    def _slices(self, start: int, stop: int) -> Iterator[tuple[Tensor, slice]]:
        """Float64 copies of successive columns of G, with their place."""
        width = max(1, _CHUNK_ELEMENTS // self.num_gradients)
        for left in range(start, stop, width):
            at = slice(left, min(left + width, stop))
            yield self._gradients[:, at].double(), at
