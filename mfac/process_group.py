"""The columns of G sharded over several processes.

A full Fisher couples all columns through Gram matrices only, which are sums over columns. So each
process keeps its own columns, and only sums of m x m matrices and of vectors of length m are
communicated. The communication itself is not part of this package: the caller passes in a
:class:`ProcessGroup`.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from mfac_compress.mfac.partition import BlockPartition


class ProcessGroup(Protocol):
    """The processes that hold the columns of one window, in order. All make the same calls.

    Attributes:
        rank: Position of this process in the group.
    """

    rank: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum ``x`` over all processes, bit-identical on each. May overwrite ``x``."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate every process's ``x`` by rank along the first dimension, which may vary."""

    def raise_on_every_rank(self) -> AbstractContextManager[None]:
        """Let an error of any process be raised by all; for work in which they do not talk."""


class SingleProcess:
    """A group of one process, which holds all columns."""

    rank = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def raise_on_every_rank(self) -> AbstractContextManager[None]:
        return nullcontext()


SINGLE = SingleProcess()


@dataclass(frozen=True)
class Shard:
    """The columns of one process.

    Args:
        columns: Their range in the flat vector.
        partition: The blocks of these columns, counted from 0.
        coupled: Whether they are part of one block whose other columns other processes hold.
    """

    columns: slice
    partition: BlockPartition
    coupled: bool


def shard_columns(
    partition: BlockPartition, count: int, *, within_blocks: bool = False, unit: int = 1
) -> list[Shard]:
    """Divide the columns among processes, as evenly as whole blocks allow.

    Args:
        partition: The blocks.
        count: Number of processes.
        within_blocks: If there is only one block, divide its columns. Only the m x m
            representation works with part of a block.
        unit: Number of adjacent columns that are not divided. Blocks hold whole ones.

    Raises:
        ValueError: If there are not enough blocks.

    Example:
        >>> [shard.columns for shard in shard_columns(BlockPartition.contiguous(20, 4), 2)]
        [slice(0, 12, None), slice(12, 20, None)]
        >>> [shard.columns for shard in shard_columns(BlockPartition.contiguous(5, None), 2,
        ...  within_blocks=True)]
        [slice(0, 2, None), slice(2, 5, None)]
    """
    units = partition.size // unit
    if within_blocks and partition.count == 1 < count <= units:
        boundaries = [units * i // count * unit for i in range(count + 1)]
        return [
            Shard(slice(a, b), BlockPartition.contiguous(b - a, None), coupled=True)
            for a, b in pairwise(boundaries)
        ]
    return [
        Shard(slice(a, b), partition.part(a, b), coupled=False)
        for a, b in pairwise(partition.shard_boundaries(count))
    ]
