"""The diagonal blocks of a block-wise Fisher, as runs of blocks of one size.

Blocks of one run are handled as one batched tensor. Where a run's columns are not a multiple of
the block size, the last block is padded with columns of zero gradient, which the damping turns
into rows of λI that are coupled to nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

T = TypeVar("T", int, Tensor)


@dataclass(frozen=True)
class UniformBlocks:
    """A run of blocks of one size: columns ``[start, stop)`` split into blocks of ``size``.

    Args:
        start: First column.
        stop: One past the last column.
        size: Columns of a block.
        period: Number of columns after which a new block always starts, so that the last block of
            each period is padded; None for the whole run. It divides ``stop - start``.
    """

    start: int
    stop: int
    size: int
    period: int | None = field(default=None)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self._periods * self._in_period

    @property
    def _length(self) -> int:
        return self.period or self.stop - self.start

    @property
    def _periods(self) -> int:
        return (self.stop - self.start) // self._length

    @property
    def _in_period(self) -> int:
        return -(-self._length // self.size)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """``(start, stop)`` of each block's columns, without padding."""
        return [
            (left, min(left + self.size, first + self._length))
            for first in range(self.start, self.stop, self._length)
            for left in range(first, first + self._length, self.size)
        ]

    def to_blocks(self, x: Tensor) -> Tensor:
        """Split the run's columns into blocks. Shape ``[..., d]`` -> ``[..., count, size]``."""
        columns = x[..., self.start : self.stop].unflatten(-1, (self._periods, self._length))
        missing = self._in_period * self.size - self._length
        if missing:
            columns = pad(columns, (0, missing))
        return columns.unflatten(-1, (self._in_period, self.size)).flatten(-3, -2)

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """Invert :meth:`to_blocks`. Shape ``[count, size]`` -> ``[stop - start]``."""
        return blocks.reshape(self._periods, -1)[:, : self._length].reshape(-1)

    def locate(self, column: T) -> tuple[T, T]:
        """Return the position of a column of the run, or of several: (block, column in it)."""
        column = column - self.start
        period, inner = column // self._length, column % self._length
        return period * self._in_period + inner // self.size, inner % self.size

    @property
    def ends(self) -> Tensor:
        """Columns at which the run may end: after each period, or after each block of a single one.

        An int64 tensor, not a list of runs: a large model has a million blocks.
        """
        step = self._length if self._periods > 1 else self.size
        return torch.arange(self.start + step, self.stop + step, step).clamp_(max=self.stop)

    @property
    def elements_between_ends(self) -> int:
        """Elements of the blocks between two neighbouring :attr:`ends`."""
        return self.size**2 * (self._in_period if self._periods > 1 else 1)

    def part(self, start: int, stop: int) -> "UniformBlocks":
        """Return its blocks in columns ``[start, stop)``, counted from ``start``.

        Both limits are outside the run, or among its :attr:`ends`.
        """
        left, right = max(self.start, start), min(self.stop, stop)
        period = self.period if self._periods > 1 else None
        return UniformBlocks(left - start, right - start, self.size, period)

    def split(self, blocks: int) -> Iterator["UniformBlocks"]:
        """Split the run into shorter runs of about ``blocks`` blocks each, in order."""
        if self._periods > 1:
            step = max(1, blocks // self._in_period) * self._length
            period = self.period
        else:
            step, period = blocks * self.size, None
        for left in range(self.start, self.stop, step):
            yield UniformBlocks(left, min(left + step, self.stop), self.size, period)


class BlockPartition:
    """A partition of d columns into diagonal blocks.

    Args:
        runs: Adjacent runs, the first of which starts at 0.
    """

    def __init__(self, runs: Iterable[UniformBlocks]) -> None:
        self.runs = tuple(runs)
        self.size = self.runs[-1].stop

    @classmethod
    def contiguous(cls, d: int, block_size: int | None) -> "BlockPartition":
        """Blocks of ``block_size`` columns from 0 to d; None for one block of all columns."""
        return cls.of_tensors([(0, d)], block_size) if block_size else cls([UniformBlocks(0, d, d)])

    @classmethod
    def of_tensors(cls, bounds: Iterable[tuple[int, int]], block_size: int) -> "BlockPartition":
        """Blocks of at most ``block_size`` columns, none of which straddles two tensors.

        Args:
            bounds: ``(start, stop)`` of each tensor, adjacent and in order.
            block_size: B.
        """
        return cls(UniformBlocks(a, b, min(block_size, b - a)) for a, b in bounds)

    @classmethod
    def of_rows(
        cls, shapes: Iterable[Sequence[int]], block_size: int, unit: int = 1
    ) -> "BlockPartition":
        """Blocks that follow each tensor's rows, its weight seen as ``[out, in * kernel]``.

        A row longer than ``block_size`` is split into nearly equal blocks, so that no block holds
        weights of two output channels; of shorter rows, as many as fit make up a block.

        Args:
            shapes: Shape of each tensor, in the order of the flat vector. A vector is one row.
            block_size: B, the largest number of columns of a block.
            unit: Number of adjacent columns that stay in one block; it divides B and each row.

        Example:
            >>> partition = BlockPartition.of_rows([(3, 10), (4, 2)], block_size=6)
            >>> [run.bounds for run in partition]
            [[(0, 5), (5, 10), (10, 15), (15, 20), (20, 25), (25, 30)], [(30, 34), (34, 38)]]
        """
        runs, start = [], 0
        for shape in shapes:
            rows, length = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
            stop = start + rows * length
            if length > block_size:
                size = _near_equal(length // unit, block_size // unit) * unit
                runs.append(UniformBlocks(start, stop, size, length))
            else:
                size = _near_equal(rows, block_size // length) * length
                runs.append(UniformBlocks(start, stop, size))
            start = stop
        return cls(runs)

    @property
    def largest(self) -> int:
        """Side of the largest block."""
        return max(run.size for run in self.runs)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return sum(run.count for run in self.runs)

    def locate(self, column: int) -> tuple[int, int, int]:
        """Where a column lies: (run, block in the run, column in the block)."""
        for index, run in enumerate(self.runs):
            if run.start <= column < run.stop:
                return index, *run.locate(column)
        raise ValueError(f"A column must lie in [0, {self.size}). Got {column}.")

    def shard_boundaries(self, count: int) -> list[int]:
        """Return the column boundaries of ``count`` shards of whole blocks of about equal size.

        Size is the number of elements of the blocks, not of columns.

        Returns:
            ``count + 1`` columns, from 0 to d.

        Raises:
            ValueError: If there are not enough blocks.
        """
        ends = torch.cat([run.ends for run in self])
        if len(ends) < count:
            raise ValueError(
                f"The Fisher must have a block for each process. Got {len(ends)} blocks for "
                f"{count} processes. Use fewer processes, or smaller blocks."
            )
        sizes = [run.ends.new_full((len(run.ends),), run.elements_between_ends) for run in self]
        elements = torch.cat(sizes).double().cumsum(0)
        boundaries, done = [0], 0
        for part in range(1, count + 1):
            even = int(torch.searchsorted(elements, elements[-1] * part / count)) + 1
            # No shard is empty.
            done = min(max(even, done + 1), len(ends) - count + part)
            boundaries.append(int(ends[done - 1]))
        return boundaries

    def part(self, start: int, stop: int) -> "BlockPartition":
        """Return the blocks between two :meth:`shard_boundaries`, counted from ``start``."""
        return BlockPartition(
            run.part(start, stop) for run in self if run.start < stop and run.stop > start
        )

    def to_blocks(self, x: Tensor) -> list[Tensor]:
        """Split into blocks. Shape ``[..., d]`` -> one ``[..., count, size]`` for each run."""
        return [run.to_blocks(x) for run in self.runs]

    def from_blocks(self, blocks: Sequence[Tensor]) -> Tensor:
        """Invert :meth:`to_blocks`. One ``[count, size]`` for each run -> ``[d]``."""
        return torch.cat([run.from_blocks(x) for run, x in zip(self, blocks, strict=True)])

    def __iter__(self) -> Iterator[UniformBlocks]:
        return iter(self.runs)


def _near_equal(total: int, largest: int) -> int:
    """Return the size of the parts when ``total`` is split evenly into parts of <= ``largest``."""
    return -(-total // -(-total // largest))
