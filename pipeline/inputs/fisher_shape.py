"""Which blocks the Fisher has, and which of its columns each process takes."""

from dataclasses import dataclass
from typing import Literal

from mfac_compress.mfac.layout import Layout
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import uses_blocks
from mfac_compress.mfac.process_group import Shard, shard_columns
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.recipe.schema import FisherSection


@dataclass(frozen=True)
class FisherShape:
    """How a Fisher is kept; no part of the damping, which comes in at inversion.

    Args:
        layout: The order of the pruned weights in the flat vector.
        num_gradients: m, the number of gradients.
        block_size: Side of the diagonal blocks; ``full`` for one block of all.
        blocks: Whether blocks follow a tensor's rows.
        window_dtype: Storage of the gradients, where they are kept.
        unit: Number of adjacent columns that are removed together, which no block divides.
    """

    layout: Layout
    num_gradients: int
    block_size: int | Literal["full"]
    blocks: Literal["tensor", "row"]
    window_dtype: str
    unit: int = 1

    @classmethod
    def of(cls, targets: PruneTargets, num_gradients: int, section: FisherSection) -> "FisherShape":
        """Describe the Fisher of the tensors that a recipe prunes."""
        return cls(
            layout=targets.layout,
            num_gradients=num_gradients,
            block_size=section.block_size,
            blocks=section.blocks,
            window_dtype=section.window_dtype,
            unit=targets.unit_size,
        )

    @property
    def partition(self) -> BlockPartition:
        """The blocks."""
        if self.block_size == "full":
            return BlockPartition.contiguous(self.layout.size, None)
        if self.blocks == "row":
            rows = [(t.shape[0] // t.group, t.group, *t.shape[1:]) for t in self.layout]
            return BlockPartition.of_rows(rows, self.block_size, self.unit)
        return BlockPartition.of_tensors(self.layout.bounds, self.block_size)

    @property
    def uses_blocks(self) -> bool:
        """Whether the Fisher is kept as B x B blocks; else as a window of gradients."""
        return uses_blocks(self.partition, self.num_gradients)

    def shards(self, processes: int) -> list[Shard]:
        """The Fisher's columns of each process.

        Raises:
            InputError: If there are not enough blocks for all.
        """
        try:
            return shard_columns(
                self.partition, processes, within_blocks=not self.uses_blocks, unit=self.unit
            )
        except ValueError as error:
            raise InputError(f"fisher.block_size: {error}") from error
