"""The Fisher as B x B diagonal blocks, and its inverse: the smaller representation for B <= m.

Gradients are added to the blocks as they arrive and are never kept. The sums are float64 in one
half of each symmetric block, which takes as much memory as full blocks in float32: O(dB). They are
factored a few blocks at a time whenever the inverse is used, so that no factors are kept either.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mfac_compress.mfac.inverse import InverseFisher, check_damping
from mfac_compress.mfac.joint import joint_update_blocks, solve_kept_blocks
from mfac_compress.mfac.numerics import (
    TOLERANCE,
    PrecisionError,
    damping_error,
    exact_products,
    sum_error,
)
from mfac_compress.mfac.partition import BlockPartition, UniformBlocks
from mfac_compress.mfac.plan import plan_blocks
from mfac_compress.mfac.symmetric import (
    add_products,
    amplification,
    blocks_at_once,
    inverse_factor,
    packed_diagonal,
    packed_zeros,
    symmetrize,
    unpack_lower,
)

# One update of the sums reads and writes all of them, so rows are buffered.
_ROWS_AT_ONCE = 64
# Rows of one product: longer sums lose precision in float32 and are no faster.
_ROWS_OF_PRODUCT = 512


class BlockFisher:
    """Σ gᵢgᵢᵀ on diagonal blocks, undamped, summed in float64.

    Args:
        partition: The blocks.
        device: Where the sums live.
        products: Dtype in which gradients are multiplied. Float32 is faster and accurate enough
            for well-conditioned blocks; :meth:`invert` refuses others.
    """

    def __init__(
        self,
        partition: BlockPartition,
        device: torch.device | str = "cpu",
        products: torch.dtype = torch.float64,
    ) -> None:
        self.partition = partition
        self.num_gradients = 0
        self.products = products
        self.sums = [packed_zeros(run.count, run.size, device) for run in partition]
        self._gradient_sum = torch.zeros(partition.size, dtype=torch.float64, device=device)
        self._dtype = torch.float32
        self._pending: list[Tensor] = []
        self._shared = False

    @property
    def mean_gradient(self) -> Tensor:
        """1/m Σ gᵢ. Shape ``[d]``, float64."""
        self._check_filled()
        self.flush()
        return self._gradient_sum / self.num_gradients

    @property
    def mean_diagonal(self) -> float:
        """Mean of the undamped Fisher's diagonal, 1/(md) Σ ‖gᵢ‖²."""
        self._check_filled()
        self.flush()
        trace = sum(
            packed_diagonal(total, run.size).sum().item()
            for run, total in zip(self.partition, self.sums, strict=True)
        )
        return trace / (self.num_gradients * self.partition.size)

    def add(self, gradients: Tensor) -> None:
        """Add k gradients. Shape ``[k, d]``. The caller may overwrite them afterwards.

        Raises:
            ValueError: If they do not have the partition's d columns.
        """
        if gradients.ndim != 2 or gradients.shape[1] != self.partition.size:
            raise ValueError(
                f"gradients must be [k, {self.partition.size}]. Got {list(gradients.shape)}."
            )
        self.num_gradients += gradients.shape[0]
        self._dtype = torch.promote_types(self._dtype, gradients.dtype)
        if gradients.shape[0] >= _ROWS_AT_ONCE:
            self._add_to_sums(gradients)
            return
        self._pending.append(gradients.clone())
        if sum(part.shape[0] for part in self._pending) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Add the buffered gradients to the sums."""
        if self._pending:
            gradients = torch.cat(self._pending)
            self._pending = []
            self._add_to_sums(gradients)

    def invert(self, damping: float) -> "BlockInverse":
        """Damp and factor. The sums are not changed, so another damping needs no new gradients.

        Raises:
            ValueError: If no gradient was added, one was not finite, or the damping is not
                positive.
            PrecisionError: If the damping is too small for the precision of the sums.
        """
        damping = check_damping(damping)
        self._check_filled()
        self.flush()
        self._shared = True
        rows = min(self.num_gradients, _ROWS_OF_PRODUCT)
        return BlockInverse(
            self.partition,
            self.sums,
            damping,
            self.num_gradients,
            self._dtype,
            sum_error(rows, self.products),
        )

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """Yield the state for :meth:`add_part`: a single part, since the sums fit into memory."""
        self.flush()
        yield {
            "num_gradients": torch.tensor(self.num_gradients),
            "gradient_sum": self._gradient_sum,
            **{str(i): total for i, total in enumerate(self.sums)},
        }

    def add_part(self, part: dict[str, Tensor]) -> None:
        """Replace the sums by those of another Fisher of the same partition."""
        self._pending = []
        self.num_gradients = int(part["num_gradients"])
        self._gradient_sum = part["gradient_sum"]
        self.sums = [part[str(i)] for i in range(len(self.sums))]
        self._shared = True

    def _check_filled(self) -> None:
        if not self.num_gradients:
            raise ValueError("A Fisher needs at least one gradient. Got none.")

    def _add_to_sums(self, gradients: Tensor) -> None:
        if self._shared:  # an inverse still reads the old sums
            self.sums = [total.clone() for total in self.sums]
            self._gradient_sum = self._gradient_sum.clone()
            self._shared = False
        dtype = torch.promote_types(self.products, gradients.dtype)
        with exact_products():
            for rows in gradients.split(_ROWS_OF_PRODUCT):
                for run, total in zip(self.partition, self.sums, strict=True):
                    self._add_run(rows, run, total, dtype)

    def _add_run(self, rows: Tensor, run: UniformBlocks, total: Tensor, dtype: torch.dtype) -> None:
        k, side = rows.shape[0], 2 * total.shape[-1]
        parts = list(run.split(blocks_at_once(max(side, k) * side, rows.device)))
        buffer = rows.new_zeros(max(part.count for part in parts), k, side, dtype=dtype)
        done = 0
        for part in parts:
            blocks = buffer[: part.count]
            blocks[..., : run.size] = part.to_blocks(rows).transpose(0, 1)
            add_products(total[done : done + part.count], blocks)
            sums = blocks[..., : run.size].sum(dim=1)
            self._gradient_sum[part.start : part.stop] += part.from_blocks(sums)
            done += part.count


class BlockInverse(InverseFisher):
    """F⁻¹ by the blocks of F, which are factored on use.

    Args:
        partition: The blocks.
        sums: Packed Σ gᵢgᵢᵀ, kept by reference. Shape ``[count, 2h + 1, h]`` for each run.
        damping: λ, not included in the sums.
        num_gradients: m.
        dtype: Dtype of the diagonal.
        product_error: Error bound of the sums, relative to ‖column j‖‖column k‖.

    Raises:
        ValueError: If the sums are not finite.
        PrecisionError: If the damping is too small for the precision of the sums.
    """

    def __init__(
        self,
        partition: BlockPartition,
        sums: list[Tensor],
        damping: float,
        num_gradients: int,
        dtype: torch.dtype = torch.float32,
        product_error: float = 0.0,
    ) -> None:
        self.partition = partition
        self.damping = damping
        self.num_gradients = num_gradients
        self.size = partition.size
        self.plan = plan_blocks(partition, num_gradients)
        self._sums = sums
        self._diagonal = torch.empty(self.size, dtype=dtype, device=sums[0].device)
        self._product_error = product_error
        self._check_finite()
        with exact_products():
            self._fill_diagonal()

    def blocks(self) -> Iterator[tuple[UniformBlocks, Tensor]]:
        """Yield the damped Fisher F, several blocks at a time, as float64 ``[count, B, B]``.

        Padding columns are rows of λI. Only the blocks yielded are in memory.
        """
        for part, lower in self._lower_blocks():
            yield part, symmetrize(lower)

    def ihvp(self, x: Tensor) -> Tensor:
        self._check_vector(x)
        result = torch.empty_like(x)
        for part, _, R in self._factored_blocks():
            solved = R.mT @ (R @ part.to_blocks(x).to(R).unsqueeze(-1))
            result[part.start : part.stop] = part.from_blocks(solved).to(x)
        return result

    def diagonal(self) -> Tensor:
        return self._diagonal.clone()

    def element(self, j: int, k: int) -> float:
        self._check_indices(j, k)
        (index, block, row), (other, other_block, column) = map(self.partition.locate, (j, k))
        if (index, block) != (other, other_block):
            return 0.0
        packed = self._sums[index][block : block + 1]
        side = 2 * packed.shape[-1]
        size = self.partition.runs[index].size
        R = inverse_factor(self._damp(packed, packed.new_empty(1, side, side), size))[0]
        return (R[:, row] @ R[:, column]).item()

    def joint_update(self, weights: Tensor, mask: Tensor) -> Tensor:
        return self._solve_blocks(joint_update_blocks, weights, mask)

    def solve_kept(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._solve_blocks(solve_kept_blocks, x, mask)

    def _solve_blocks(
        self, solve: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        """Apply ``solve(F, x, mask)`` to all blocks, a few at a time. Shape ``[d]`` -> ``[d]``."""
        self._check_vector(x)
        self._check_vector(mask)
        result = torch.empty_like(x)
        for part, fisher in self.blocks():
            solved = solve(fisher, part.to_blocks(x).to(fisher), part.to_blocks(mask))
            result[part.start : part.stop] = part.from_blocks(solved).to(x)
        return result

    def _lower_blocks(self) -> Iterator[tuple[UniformBlocks, Tensor]]:
        """Yield lower halves of F in a reused buffer: allocating new memory costs time."""
        for run, total in zip(self.partition, self._sums, strict=True):
            parts = list(run.split(blocks_at_once(run.size**2, total.device)))
            side = 2 * total.shape[-1]
            buffer = total.new_empty(max(part.count for part in parts), side, side)
            done = 0
            for part in parts:
                yield part, self._damp(total[done : done + part.count], buffer, run.size)
                done += part.count

    def _damp(self, packed: Tensor, buffer: Tensor, size: int) -> Tensor:
        """Return lower halves of the blocks of F, in the buffer. Shape ``[n, size, size]``."""
        buffer = buffer[: packed.shape[0]]
        unpack_lower(packed, buffer)
        lower = buffer[:, :size, :size].div_(self.num_gradients)
        lower.diagonal(dim1=-2, dim2=-1).add_(self.damping)
        return lower

    def _factored_blocks(self) -> Iterator[tuple[UniformBlocks, Tensor, Tensor]]:
        """Yield lower halves of F and R of F⁻¹ = RᵀR, in reused buffers."""
        buffer = self._sums[0].new_zeros(0, 0, 0)
        for part, lower in self._lower_blocks():
            if buffer.shape[0] < part.count or buffer.shape[1:] != lower.shape[1:]:
                buffer = torch.zeros_like(lower, memory_format=torch.contiguous_format)
            try:
                yield part, lower, inverse_factor(lower, out=buffer[: part.count])
            except torch.linalg.LinAlgError:
                raise self._precision_error() from None

    def _fill_diagonal(self) -> None:
        for part, lower, R in self._factored_blocks():
            scale = lower.diagonal(dim1=-2, dim2=-1).clone()
            diagonal = torch.mul(R, R, out=lower).sum(dim=-2)
            error = self._product_error + sum_error(lower.shape[-1], torch.float64)
            if not error * amplification(R, scale, diagonal) <= TOLERANCE:
                raise self._precision_error()
            self._diagonal[part.start : part.stop] = part.from_blocks(diagonal).to(self._diagonal)

    def _check_finite(self) -> None:
        for run, total in zip(self.partition, self._sums, strict=True):
            if not torch.isfinite(packed_diagonal(total, run.size)).all():
                if not _is_exact(self._product_error):
                    raise self._precision_error()
                raise ValueError(
                    "gradients must be finite, and so must their squares. Got NaN or infinity in "
                    f"columns {run.start} to {run.stop}. Check the samples they came from."
                )

    def _precision_error(self) -> PrecisionError:
        if not _is_exact(self._product_error):
            return damping_error(self.damping, "products in float32; try float64")
        return damping_error(self.damping, "float64 to factor the Fisher")


def _is_exact(product_error: float) -> bool:
    return product_error <= sum_error(_ROWS_OF_PRODUCT, torch.float64)
