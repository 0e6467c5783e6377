"""The inverse through m x m matrices: the smaller representation where a block has B > m columns.

With S = mλI + GGᵀ = LLᵀ in float64 and V = L⁻¹G, block by block:

    F⁻¹x       = (x − Gᵀ S⁻¹ G x) / λ
    [F⁻¹]_jk   = (δ_jk − v_jᵀ v_k) / λ

G is read in slices of columns, so no second m x d matrix is allocated.
"""

import torch
from torch import Tensor

from mfac_compress.mfac.columns import Columns
from mfac_compress.mfac.gram_factor import GramFactor, inverse_diagonal
from mfac_compress.mfac.inverse import InverseFisher, check_damping
from mfac_compress.mfac.numerics import damping_error, exact_products
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import count_cached_factors, plan_window
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup


class WindowInverse(InverseFisher):
    """F⁻¹ as the gradient window and one m x m matrix per block.

    Args:
        gradients: G, kept by reference. Shape ``[m, d]``.
        damping: λ.
        partition: The blocks.
        device: Device of the computation; None for that of the gradients.
        on_disk: Whether the gradients are a memory-mapped file, to be read in long runs.
        group: The processes that hold the columns of the block that these are part of. All
            vectors ``[d]`` are this process's columns, and all processes make the same calls.

    Raises:
        ValueError: If a gradient is not finite.
        PrecisionError: If the damping is too small for float64.
    """

    def __init__(
        self,
        gradients: Tensor,
        damping: float,
        partition: BlockPartition,
        device: torch.device | str | None = None,
        on_disk: bool = False,
        group: ProcessGroup = SINGLE,
    ) -> None:
        self.damping = check_damping(damping)
        self.partition = partition
        self.num_gradients, self.size = gradients.shape
        self.plan = plan_window(partition, self.num_gradients, gradients.dtype)
        device = torch.device(device or gradients.device)
        self._shift = self.num_gradients * damping
        self._blocks = [
            Columns(gradients, *bounds, device, on_disk, group)
            for run in partition
            for bounds in run.bounds
        ]
        dtype = torch.promote_types(torch.float32, gradients.dtype)
        self._diagonal = torch.empty(self.size, dtype=dtype, device=device)
        kept = count_cached_factors(partition, self.num_gradients, gradients.dtype)
        self._factors: dict[int, Tensor] = {}
        with exact_products():
            for columns in self._blocks:
                R, diagonal = inverse_diagonal(columns, self._shift, self.damping)
                self._diagonal[columns.start : columns.stop] = diagonal.to(self._diagonal)
                if kept == len(self._blocks):
                    self._factors[columns.start] = R

    def ihvp(self, x: Tensor) -> Tensor:
        self._check_vector(x)
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
        self._check_indices(j, k)
        if j == k:
            return self._diagonal[j].item()
        for columns in self._blocks:
            if columns.start <= j < columns.stop and columns.start <= k < columns.stop:
                v, w = (self._factor(columns) @ columns.gather(torch.tensor([j, k]))).unbind(dim=1)
                return (-(v @ w) / self.damping).item()
        return 0.0

    def joint_update(self, weights: Tensor, mask: Tensor) -> Tensor:
        """See the base class. With S_K = mλI + G_K G_Kᵀ, δ_K = G_Kᵀ S_K⁻¹ G_Q w_Q."""
        self._check_vector(weights)
        self._check_vector(mask)
        result = weights.masked_fill(~mask, 0)
        removed = weights.masked_fill(mask, 0)
        for columns in self._blocks:
            R = self._kept_factor(columns, mask)
            inner = R.mT @ (R @ columns.product(removed))
            for G, at in columns.slices(torch.float64):
                result[at] += (G.mT @ inner).masked_fill(~mask[at], 0).to(result)
        return result

    def solve_kept(self, x: Tensor, mask: Tensor) -> Tensor:
        """See the base class. F_KK⁻¹ x_K = (x_K − G_Kᵀ S_K⁻¹ G_K x_K) / λ."""
        self._check_vector(x)
        self._check_vector(mask)
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
