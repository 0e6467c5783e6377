"""Columns of G that several holders share: what each must know of the others.

A full Fisher couples all columns through Gram matrices only, which are sums over columns. So each
holder keeps its own columns, and sums of m x m matrices and of vectors of length m are all that
goes between them. How it goes there is not this package's business: a :class:`Holders` is passed
in.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from mfac_compress.mfac.partition import BlockPartition


class Holders(Protocol):
    """Those who hold the columns of one window, in order. All of them make the same calls.

    Attributes:
        rank: Position of this one among them.
    """

    rank: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum of everyone's ``x``, the same to the last bit for all. May overwrite ``x``."""

    def join(self, x: Tensor) -> Tensor:
        """Everyone's ``x`` in order, along the first dimension, in which they may differ."""


class Alone:
    """The only holder, of all columns."""

    rank = 0

    def sum(self, x: Tensor) -> Tensor:
        return x

    def join(self, x: Tensor) -> Tensor:
        return x


ALONE = Alone()


@dataclass(frozen=True)
class Shard:
    """The columns of one holder.

    Args:
        columns: Where they lie in the flat vector.
        partition: The blocks of these columns, counted from 0.
        coupled: Whether they are part of one block, whose other columns are with other holders.
    """

    columns: slice
    partition: BlockPartition
    coupled: bool


def divide(partition: BlockPartition, count: int, *, within_blocks: bool = False) -> list[Shard]:
    """Divide the columns among holders, as evenly as whole blocks allow.

    Args:
        partition: The blocks.
        count: Number of holders.
        within_blocks: Where there is but one block, divide its columns. Only the m x m
            representation can do with a part of a block.

    Raises:
        ValueError: If there are not enough blocks.

    Example:
        >>> [shard.columns for shard in divide(BlockPartition.contiguous(20, 4), 2)]
        [slice(0, 12, None), slice(12, 20, None)]
        >>> [shard.columns for shard in divide(BlockPartition.contiguous(5, None), 2,
        ...  within_blocks=True)]
        [slice(0, 2, None), slice(2, 5, None)]
    """
    if within_blocks and partition.count == 1 < count <= partition.size:
        cuts = [partition.size * i // count for i in range(count + 1)]
        return [
            Shard(slice(a, b), BlockPartition.contiguous(b - a, None), coupled=True)
            for a, b in pairwise(cuts)
        ]
    return [
        Shard(slice(a, b), partition.part(a, b), coupled=False)
        for a, b in pairwise(partition.cuts(count))
    ]
