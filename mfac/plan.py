"""Memory and FLOPs of an inverse Fisher, before it is built."""

from dataclasses import dataclass

import torch

from mfac_compress.mfac.partition import BlockPartition

_FLOAT64, _FLOAT32 = 8, 4


@dataclass(frozen=True)
class InversePlan:
    """The chosen representation of an inverse, the reason, and its cost.

    Attributes:
        representation: ``blocks`` (B x B) or ``window`` (m x m).
        reason: Why it is the smaller one.
        window_bytes: Memory of the gradients, or of their sums on the blocks.
        inverse_bytes: Memory of the factors and of the diagonal of the inverse.
        flops: Floating-point operations to build it with the diagonal, exploiting symmetry.
    """

    representation: str
    reason: str
    window_bytes: int
    inverse_bytes: int
    flops: int

    @property
    def total_bytes(self) -> int:
        return self.window_bytes + self.inverse_bytes


def uses_blocks(partition: BlockPartition, num_gradients: int) -> bool:
    """Whether B x B blocks are the smaller representation for these blocks and m.

    Blocks of one size are smaller if B <= m; for B = m both take about the same work.
    """
    return _block_elements(partition) <= num_gradients * partition.size


def plan_inverse(
    partition: BlockPartition,
    num_gradients: int,
    window_dtype: torch.dtype = torch.float32,
    shard: BlockPartition | None = None,
) -> InversePlan:
    """Return which representation a Fisher and its inverse have, and their cost.

    Args:
        partition: The blocks, which decide the representation.
        num_gradients: m.
        window_dtype: Storage dtype of the gradients, if they are kept.
        shard: The blocks of one process, for the cost of that process; None for all blocks.
    """
    held, m = shard or partition, num_gradients
    if uses_blocks(partition, m):
        # Their lower halves in float64.
        packed = sum(run.count * (run.size + 2) * (run.size + 1) // 2 for run in held)
        return InversePlan(
            "blocks",
            _reason(held, m),
            packed * _FLOAT64,
            held.size * _FLOAT32,
            _block_flops(held, m),
        )
    factors = count_cached_factors(held, m, window_dtype)
    return InversePlan(
        "window",
        _reason(held, m),
        m * held.size * window_dtype.itemsize,
        factors * m * m * _FLOAT64 + held.size * _FLOAT32,
        _window_flops(held, m),
    )


def count_cached_factors(
    partition: BlockPartition, num_gradients: int, window_dtype: torch.dtype
) -> int:
    """How many m x m factors are kept: all, or one at a time where all would need much memory."""
    factors = partition.count * num_gradients * _FLOAT64
    window = partition.size * window_dtype.itemsize
    return partition.count if partition.count == 1 or 10 * factors <= window else 1


def _reason(partition: BlockPartition, m: int) -> str:
    blocks, window = _block_elements(partition), m * partition.size
    compared = "more" if blocks > window else "not more"
    return (
        f"blocks of up to B = {partition.largest} have {blocks:,} elements, {compared} than the "
        f"{window:,} of m = {m} gradients"
    )


def _block_elements(partition: BlockPartition) -> int:
    return sum(run.count * run.size**2 for run in partition)


def _block_flops(partition: BlockPartition, m: int) -> int:
    """For each block: symmetric product mB², Cholesky factor and triangular inverse."""
    return sum(run.count * (m * run.size**2 + 2 * run.size**3 // 3) for run in partition)


def _window_flops(partition: BlockPartition, m: int) -> int:
    """For each block: Gram and triangular product m²B each, Cholesky factor and its inverse."""
    return sum(run.count * (2 * m**2 * run.size + 2 * m**3 // 3) for run in partition)
