"""The Fisher as B x B diagonal blocks: the smaller representation for B <= m.

Gradients are added to the blocks as they arrive and are never kept. The sums are float64 in one
half of each symmetric block, which takes as much memory as full blocks in float32: O(dB).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mfac_compress.mfac.checks import check_filled, check_gradients
from mfac_compress.mfac.partition import BlockPartition, UniformBlocks
from mfac_compress.mfac.symmetric import (
    add_products,
    blocks_at_once,
    packed_diagonal,
    packed_zeros,
)

# Rows of one product. Each update of the sums reads and writes all of them, so rows are buffered;
# more rows are hardly faster, and take more memory than the sums.
_ROWS_AT_ONCE = 128


class BlockFisher:
    """Σ gᵢgᵢᵀ on diagonal blocks, undamped, multiplied and summed in float64.

    Args:
        partition: The blocks.
        device: Where the sums live.

    Attributes:
        num_gradients: How many were added.
        dtype: That of the gradients, at least float32.
    """

    def __init__(self, partition: BlockPartition, device: torch.device | str = "cpu") -> None:
        self.partition = partition
        self.num_gradients = 0
        self.dtype = torch.float32
        self._sums = [packed_zeros(run.count, run.size, device) for run in partition]
        self._gradient_sum = torch.zeros(partition.size, dtype=torch.float64, device=device)
        self._buffer = torch.empty(0, partition.size, device=device)
        self._buffered = 0
        self._shared = False

    @property
    def mean_gradient(self) -> Tensor:
        """1/m Σ gᵢ. Shape ``[d]``, float64."""
        check_filled(self.num_gradients)
        self._flush()
        return self._gradient_sum / self.num_gradients

    @property
    def mean_diagonal(self) -> float:
        """Mean of the undamped Fisher's diagonal, 1/(md) Σ ‖gᵢ‖²."""
        check_filled(self.num_gradients)
        self._flush()
        trace = sum(
            packed_diagonal(total, run.size).sum().item()
            for run, total in zip(self.partition, self._sums, strict=True)
        )
        return trace / (self.num_gradients * self.partition.size)

    def add(self, gradients: Tensor) -> None:
        """Add k gradients. Shape ``[k, d]``. The caller may overwrite them afterwards.

        Raises:
            ValueError: If they do not have the partition's d columns.
        """
        check_gradients(gradients, self.partition.size)
        self.num_gradients += gradients.shape[0]
        self.dtype = torch.promote_types(self.dtype, gradients.dtype)
        for rows in gradients.split(_ROWS_AT_ONCE):
            self._add_buffered(rows)

    def sums(self) -> list[Tensor]:
        """Return Σ gᵢgᵢᵀ, packed, of each run: ``[count, h, 2h + 1]``. Later gradients change none.

        See :mod:`~mfac_compress.mfac.symmetric` for the packed form.
        """
        self._flush()
        self._shared = True
        return self._sums

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """Yield the state for :meth:`add_part`: a single part, since the sums fit into memory."""
        self._flush()
        yield {
            "num_gradients": torch.tensor(self.num_gradients),
            "gradient_sum": self._gradient_sum,
            **{str(i): total for i, total in enumerate(self._sums)},
        }

    def add_part(self, part: dict[str, Tensor]) -> None:
        """Replace the sums by those of another Fisher of the same partition."""
        self._buffered = 0
        self.num_gradients = int(part["num_gradients"])
        self._gradient_sum = part["gradient_sum"]
        self._sums = [part[str(i)] for i in range(len(self._sums))]
        self._shared = True

    def _add_buffered(self, rows: Tensor) -> None:
        """Add up to as many rows as the buffer holds; if they fill it alone, without a copy."""
        k = rows.shape[0]
        if self._buffered + k > _ROWS_AT_ONCE or rows.dtype != self._buffer.dtype:
            self._empty_buffer()
        if k == _ROWS_AT_ONCE:
            self._add_to_sums(rows)
            return
        if not self._buffer.numel() or rows.dtype != self._buffer.dtype:
            self._buffer = rows.new_empty(_ROWS_AT_ONCE, self.partition.size)
        self._buffer[self._buffered : self._buffered + k] = rows
        self._buffered += k

    def _empty_buffer(self) -> None:
        if self._buffered:
            self._add_to_sums(self._buffer[: self._buffered])
            self._buffered = 0

    def _flush(self) -> None:
        """Add the buffered gradients to the sums, and free the buffer."""
        self._empty_buffer()
        self._buffer = self._buffer[:0].clone()

    def _add_to_sums(self, rows: Tensor) -> None:
        if self._shared:  # whoever was given the old sums still reads them
            self._sums = [total.clone() for total in self._sums]
            self._gradient_sum = self._gradient_sum.clone()
            self._shared = False
        for run, total in zip(self.partition, self._sums, strict=True):
            self._add_run(rows, run, total)

    def _add_run(self, rows: Tensor, run: UniformBlocks, total: Tensor) -> None:
        k, side = rows.shape[0], 2 * total.shape[1]
        parts = list(run.split(blocks_at_once(max(side, k) * side, rows.device)))
        most = max(part.count for part in parts)
        buffer = rows.new_zeros(most, k, side, dtype=torch.float64)
        done = 0
        for part in parts:
            blocks = buffer[: part.count]
            blocks[..., : run.size] = part.to_blocks(rows).transpose(0, 1)
            add_products(total[done : done + part.count], blocks)
            sums = blocks[..., : run.size].sum(dim=1)
            self._gradient_sum[part.start : part.stop] += part.from_blocks(sums)
            done += part.count
