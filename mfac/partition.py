"""The diagonal blocks of a block-wise Fisher, as runs of equally large blocks.

Blocks of one run are handled as one batched tensor. Where a run's columns do not divide into
blocks, the last block is padded with columns of zero gradient, which the damping turns into rows
of λI that touch nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class BlockRun:
    """Columns ``[start, stop)`` cut into blocks of ``size``.

    Args:
        start: First column.
        stop: Behind the last column.
        size: Columns of a block.
        period: Columns after which cutting starts anew, so that the last block of each period is
            the one that is padded; None for the whole run. It divides ``stop - start``.
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

    def cut(self, x: Tensor) -> Tensor:
        """Blocks of the run's columns. Shape ``[..., d]`` -> ``[..., count, size]``."""
        columns = x[..., self.start : self.stop].unflatten(-1, (self._periods, self._length))
        missing = self._in_period * self.size - self._length
        if missing:
            columns = pad(columns, (0, missing))
        return columns.unflatten(-1, (self._in_period, self.size)).flatten(-3, -2)

    def join(self, blocks: Tensor) -> Tensor:
        """The inverse of :meth:`cut` for vectors. Shape ``[count, size]`` -> ``[stop - start]``."""
        return blocks.reshape(self._periods, -1)[:, : self._length].reshape(-1)

    def locate(self, column: int) -> tuple[int, int]:
        """Where a column of the run lies: (block, column in the block)."""
        period, inner = divmod(column - self.start, self._length)
        block, place = divmod(inner, self.size)
        return period * self._in_period + block, place

    @property
    def ends(self) -> Tensor:
        """Where the run may be divided: behind each period, or each block where there is but one.

        Numbers, not runs: a large model has a million blocks. int64.
        """
        step = self._length if self._periods > 1 else self.size
        return torch.arange(self.start + step, self.stop + step, step).clamp_(max=self.stop)

    @property
    def elements_between_ends(self) -> int:
        """Elements of the blocks between two neighbouring :attr:`ends`."""
        return self.size**2 * (self._in_period if self._periods > 1 else 1)

    def part(self, start: int, stop: int) -> "BlockRun":
        """Its blocks in columns ``[start, stop)``, counted from ``start``.

        The limits are outside the run, or among its :attr:`ends`.
        """
        left, right = max(self.start, start), min(self.stop, stop)
        period = self.period if self._periods > 1 else None
        return BlockRun(left - start, right - start, self.size, period)

    def split(self, blocks: int) -> Iterator["BlockRun"]:
        """The run as shorter ones, of about ``blocks`` blocks each, in order."""
        if self._periods > 1:
            step = max(1, blocks // self._in_period) * self._length
            period = self.period
        else:
            step, period = blocks * self.size, None
        for left in range(self.start, self.stop, step):
            yield BlockRun(left, min(left + step, self.stop), self.size, period)


class BlockPartition:
    """A partition of d columns into diagonal blocks.

    Args:
        runs: Adjacent runs, the first of which starts at 0.
    """

    def __init__(self, runs: Iterable[BlockRun]) -> None:
        self.runs = tuple(runs)
        self.size = self.runs[-1].stop

    @classmethod
    def contiguous(cls, d: int, block_size: int | None) -> "BlockPartition":
        """Blocks of ``block_size`` columns from 0 to d; None for a single block of all."""
        return cls.of_tensors([(0, d)], block_size) if block_size else cls([BlockRun(0, d, d)])

    @classmethod
    def of_tensors(cls, bounds: Iterable[tuple[int, int]], block_size: int) -> "BlockPartition":
        """Blocks of at most ``block_size`` columns, none of which straddles two tensors.

        Args:
            bounds: ``(start, stop)`` of each tensor, adjacent and in order.
            block_size: B.
        """
        return cls(BlockRun(a, b, min(block_size, b - a)) for a, b in bounds)

    @classmethod
    def of_rows(cls, shapes: Iterable[Sequence[int]], block_size: int) -> "BlockPartition":
        """Blocks that follow each tensor's rows, its weight seen as ``[out, in * kernel]``.

        A row longer than ``block_size`` is cut into near-equal pieces, so that no block holds
        weights of two output channels; of shorter rows, as many as fit make a block.

        Args:
            shapes: Shape of each tensor, in the order of the flat vector. A vector is one row.
            block_size: B, the most columns of a block.

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
                size = _near_equal(length, block_size)
                runs.append(BlockRun(start, stop, size, length))
            else:
                size = _near_equal(rows, block_size // length) * length
                runs.append(BlockRun(start, stop, size))
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

    def cuts(self, count: int) -> list[int]:
        """Ends of ``count`` parts of whole blocks with about the same number of elements.

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
        cuts, done = [0], 0
        for part in range(1, count + 1):
            even = int(torch.searchsorted(elements, elements[-1] * part / count)) + 1
            done = min(max(even, done + 1), len(ends) - count + part)  # some for everyone
            cuts.append(int(ends[done - 1]))
        return cuts

    def part(self, start: int, stop: int) -> "BlockPartition":
        """The blocks between two :meth:`cuts`, counted from ``start``."""
        return BlockPartition(
            run.part(start, stop) for run in self if run.start < stop and run.stop > start
        )

    def cut(self, x: Tensor) -> list[Tensor]:
        """Shape ``[..., d]`` -> one ``[..., count, size]`` for each run."""
        return [run.cut(x) for run in self.runs]

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`cut` for vectors: ``[count, size]`` for each run -> ``[d]``."""
        return torch.cat([run.join(x) for run, x in zip(self, blocks, strict=True)])

    def __iter__(self) -> Iterator[BlockRun]:
        return iter(self.runs)


def _near_equal(total: int, most: int) -> int:
    """Size of the pieces of at most ``most`` that ``total`` is cut into as evenly as may be."""
    return -(-total // -(-total // most))
