"""What an inverse Fisher costs, before it is built."""

from dataclasses import dataclass

import torch

from mfac_compress.mfac.partition import BlockPartition

_FLOAT64 = 8


@dataclass(frozen=True)
class InversePlan:
    """The representation that is chosen, why, and what it needs.

    Attributes:
        representation: ``blocks`` (B x B) or ``window`` (m x m).
        reason: Why it is the smaller one.
        window_bytes: Gradients, or their sums on the blocks.
        inverse_bytes: Factors.
        flops: Floating-point operations of the build.
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
    """Whether B x B blocks are the smaller representation for these blocks and m."""
    return partition.largest < num_gradients


def plan_inverse(
    partition: BlockPartition, num_gradients: int, window_dtype: torch.dtype = torch.float32
) -> InversePlan:
    """Tell what :meth:`InverseFisher.build` would choose and need.

    Args:
        partition: The blocks.
        num_gradients: m.
        window_dtype: Storage of the gradients, where they are kept.
    """
    m, d, B = num_gradients, partition.size, partition.largest
    if uses_blocks(partition, m):
        elements = sum(run.count * run.size**2 for run in partition)
        factoring = sum(run.count * run.size**3 // 3 for run in partition)
        return InversePlan(
            "blocks",
            f"B = {B} is below m = {m}: B x B blocks are smaller than the m x d window",
            elements * _FLOAT64,
            elements * _FLOAT64,
            2 * m * elements + factoring,
        )
    return InversePlan(
        "window",
        f"B = {B} is not below m = {m}: m x m matrices are smaller than B x B blocks",
        m * d * window_dtype.itemsize,
        partition.count * m * m * _FLOAT64,
        2 * m * m * d + partition.count * m**3 // 3,
    )
