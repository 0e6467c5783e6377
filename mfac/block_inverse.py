"""The inverse of the Fisher on B x B diagonal blocks.

The blocks are factored a few at a time whenever the inverse is used, so that no factors are kept
beside the sums of a :class:`~mfac_compress.mfac.block_fisher.BlockFisher`.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mfac_compress.mfac.block_fisher import BlockFisher
from mfac_compress.mfac.checks import check_indices, check_same_block, check_vector
from mfac_compress.mfac.cholesky import inverse_factor
from mfac_compress.mfac.joint import joint_update_blocks, solve_kept_blocks
from mfac_compress.mfac.numerics import (
    SET_TOLERANCE,
    TOLERANCE,
    damping_error,
    error_of_sets,
    exact_products,
    sum_error,
)
from mfac_compress.mfac.partition import UniformBlocks
from mfac_compress.mfac.symmetric import (
    amplification,
    amplification_bound,
    blocks_at_once,
    packed_diagonal,
    symmetrize,
    unpack_upper,
)


class BlockInverse:
    """F⁻¹ by the blocks of F, which are factored on use.

    Args:
        fisher: The sums, which gradients added later do not change.
        damping: λ, not included in the sums.

    Raises:
        ValueError: If the sums are not finite.
        PrecisionError: If the damping is too small for float64.
    """

    def __init__(self, fisher: BlockFisher, damping: float) -> None:
        self.partition = fisher.partition
        self.damping = damping
        self.num_gradients = fisher.num_gradients
        self.size = fisher.partition.size
        self._sums = fisher.sums()
        self._diagonal = torch.empty(self.size, dtype=fisher.dtype, device=self._sums[0].device)
        self._check_finite()
        with exact_products():
            self._fill_diagonal()

    def blocks(self, times: int = 1) -> Iterator[tuple[UniformBlocks, Tensor]]:
        """Yield the damped Fisher F, several blocks at a time, as float64 ``[count, B, B]``.

        Padding columns are rows of λI. Only the blocks yielded are in memory.

        Args:
            times: Factor of the number of blocks at a time, which suits matrix products.
        """
        for part, upper in self._upper_blocks(times):
            yield part, symmetrize(upper)

    def ihvp(self, x: Tensor) -> Tensor:
        check_vector(x, self.size)
        result = torch.empty_like(x)
        for part, _, R in self._factored_blocks():
            solved = R.mT @ (R @ part.to_blocks(x).to(R).unsqueeze(-1))
            result[part.start : part.stop] = part.from_blocks(solved).to(x)
        return result

    def diagonal(self) -> Tensor:
        return self._diagonal.clone()

    def element(self, j: int, k: int) -> float:
        check_indices(j, k, self.size)
        (index, block, row), (other, other_block, column) = map(self.partition.locate, (j, k))
        if (index, block) != (other, other_block):
            return 0.0
        packed = self._sums[index][block : block + 1]
        side = 2 * packed.shape[1]
        size = self.partition.runs[index].size
        R = inverse_factor(self._damp(packed, packed.new_empty(1, side, side), size))[0]
        return (R[:, row] @ R[:, column]).item()

    def submatrices(self, columns: Tensor) -> Tensor:
        result = self._sums[0].new_empty(*columns.shape, columns.shape[1])
        starts = columns[:, 0].contiguous()
        for part, upper, R in self._factored_blocks():
            bounds = torch.tensor([part.start, part.stop], device=starts.device)
            first, stop = torch.searchsorted(starts, bounds).tolist()
            block, place = part.locate(columns[first:stop])
            check_same_block(block == block[:, :1])
            V = R.mT[block, place]
            found = torch.bmm(V, V.mT, out=result[first:stop])
            error = self._error(upper.shape[-1])
            # An error E of F with −ηF ≤ E ≤ ηF is one of F⁻¹, and of its parts, by the same share.
            share = error * (upper.diagonal(dim1=-2, dim2=-1) * R.square().sum(dim=-2)).sum(dim=-1)
            rounding = error * found.diagonal(dim1=-2, dim2=-1)
            if share.max() + error_of_sets(found, rounding) > SET_TOLERANCE:
                raise damping_error(self.damping, "float64 to judge several weights together")
        return result

    def _error(self, size: int) -> float:
        """Bound the error of an element F_jk in a block of a side, relative to √(F_jj F_kk)."""
        return sum_error(self.num_gradients, torch.float64) + sum_error(size, torch.float64)

    def joint_update(self, weights: Tensor, mask: Tensor) -> Tensor:
        return self._solve_blocks(joint_update_blocks, weights, mask)

    def solve_kept(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._solve_blocks(solve_kept_blocks, x, mask)

    def _solve_blocks(
        self, solve: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        """Apply ``solve(F, x, mask)`` to all blocks, a few at a time. Shape ``[d]`` -> ``[d]``."""
        check_vector(x, self.size)
        check_vector(mask, self.size)
        result = torch.empty_like(x)
        for part, fisher in self.blocks():
            solved = solve(fisher, part.to_blocks(x).to(fisher), part.to_blocks(mask))
            result[part.start : part.stop] = part.from_blocks(solved).to(x)
        return result

    def _upper_blocks(self, times: int = 1) -> Iterator[tuple[UniformBlocks, Tensor]]:
        """Yield upper halves of F in a reused buffer: allocating new memory costs time."""
        for run, total in zip(self.partition, self._sums, strict=True):
            parts = list(run.split(times * blocks_at_once(run.size**2, total.device)))
            side = 2 * total.shape[1]
            buffer = total.new_empty(max(part.count for part in parts), side, side)
            done = 0
            for part in parts:
                yield part, self._damp(total[done : done + part.count], buffer, run.size)
                done += part.count

    def _damp(self, packed: Tensor, buffer: Tensor, size: int) -> Tensor:
        """Return upper halves of the blocks of F, in the buffer. Shape ``[n, size, size]``."""
        buffer = buffer[: packed.shape[0]]
        unpack_upper(packed, buffer)
        upper = buffer[:, :size, :size].div_(self.num_gradients)
        upper.diagonal(dim1=-2, dim2=-1).add_(self.damping)
        return upper

    def _factored_blocks(self) -> Iterator[tuple[UniformBlocks, Tensor, Tensor]]:
        """Yield F, of which only the diagonals are left, and R of F⁻¹ = RᵀR, in reused buffers."""
        buffer = self._sums[0].new_zeros(0, 0, 0)
        for part, upper in self._upper_blocks():
            if buffer.shape[0] < part.count or buffer.shape[1:] != upper.shape[1:]:
                buffer = torch.zeros_like(upper, memory_format=torch.contiguous_format)
            try:
                yield part, upper, inverse_factor(upper, out=buffer[: part.count])
            except torch.linalg.LinAlgError:
                raise damping_error(self.damping, "float64 to factor the Fisher") from None

    def _fill_diagonal(self) -> None:
        for part, upper, R in self._factored_blocks():
            scale = upper.diagonal(dim1=-2, dim2=-1).clone()
            diagonal = torch.mul(R, R, out=upper).sum(dim=-2)
            allowed = TOLERANCE / self._error(upper.shape[-1])
            if (
                not amplification_bound(scale, diagonal) <= allowed
                and not amplification(R, scale, diagonal) <= allowed
            ):
                raise damping_error(self.damping, "float64 to factor the Fisher")
            self._diagonal[part.start : part.stop] = part.from_blocks(diagonal).to(self._diagonal)

    def _check_finite(self) -> None:
        for run, total in zip(self.partition, self._sums, strict=True):
            if not torch.isfinite(packed_diagonal(total, run.size)).all():
                raise ValueError(
                    "gradients must be finite, and so must their squares. Got NaN or infinity in "
                    f"columns {run.start} to {run.stop}. Check the samples they came from."
                )
