"""The diagonal blocks of a block-wise Fisher, as runs of equally large blocks.

Blocks of one run are handled as one batched tensor; the last block of a run is padded with
columns of zero gradient, which the damping turns into rows of λI that touch nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class BlockRun:
    """Columns ``[start, stop)``, cut into blocks of ``size``, the last one padded."""

    start: int
    stop: int
    size: int

    @property
    def count(self) -> int:
        return -(-(self.stop - self.start) // self.size)

    def cut(self, x: Tensor) -> Tensor:
        """Blocks of the run's columns. Shape ``[..., d]`` -> ``[..., count, size]``."""
        columns = x[..., self.start : self.stop]
        missing = self.count * self.size - columns.shape[-1]
        if missing:
            columns = pad(columns, (0, missing))
        return columns.unflatten(-1, (self.count, self.size))


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
                block, inner = divmod(column - run.start, run.size)
                return index, block, inner
        raise ValueError(f"A column must lie in [0, {self.size}). Got {column}.")

    def cut(self, x: Tensor) -> list[Tensor]:
        """Shape ``[..., d]`` -> one ``[..., count, size]`` for each run."""
        return [run.cut(x) for run in self.runs]

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`cut` for vectors: ``[count, size]`` for each run -> ``[d]``."""
        return torch.cat(
            [x.reshape(-1)[: run.stop - run.start] for run, x in zip(self, blocks, strict=True)]
        )

    def __iter__(self) -> Iterator[BlockRun]:
        return iter(self.runs)
