"""How the units of a pattern lie in the matrix of a layer."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowBlocks:
    """Rows that lose their units in a common order, and the units of each such block of rows.

    A unit is a rectangle: all rows of its block, and some columns. Single weights are blocks of
    one row with units of one column.

    Args:
        rows: Rows of each block, counted through all groups. Int64, shape ``[n, s]``.
        columns: Columns of each of its units. Int64, shape ``[n, u, t]``.
        numbers: Number of each unit. Int64, shape ``[n, u]``.
    """

    rows: Tensor
    columns: Tensor
    numbers: Tensor

    @classmethod
    def of(cls, unit: Tensor) -> "RowBlocks":
        """Find them.

        Args:
            unit: Number of each weight's unit. Integers, shape ``[g, r, k]``.

        Raises:
            ValueError: If a unit is no rectangle, or they are not all of one size.

        Example:
            Blocks of two neighbouring outputs:

            >>> blocks = RowBlocks.of(torch.tensor([[[0, 1], [0, 1], [2, 3], [2, 3]]]))
            >>> blocks.rows.tolist(), blocks.numbers.tolist()
            ([[0, 1], [2, 3]], [[0, 1], [2, 3]])
        """
        unit = unit.long().flatten(0, 1)
        least, block = unit.min(dim=1).values.unique(return_inverse=True)
        rows = _equal_parts(block, len(least))
        first = unit[rows[:, 0]]
        order = torch.argsort(first, dim=1, stable=True)
        ordered = first.gather(1, order)
        size = int((ordered[0] == ordered[0, 0]).sum())
        numbers = ordered[:, ::size]
        same = unit[rows].gather(2, order.unsqueeze(1).expand(-1, rows.shape[1], -1))
        expected = numbers.repeat_interleave(size, dim=1)[:, : unit.shape[1]].unsqueeze(1)
        distinct = len(numbers.unique()) == numbers.numel()
        if unit.shape[1] % size or not distinct or not (same == expected).all():
            raise _shape_error()
        return cls(rows, order.unflatten(1, (-1, size)), numbers)

    def part(self, blocks: Tensor, order: Tensor) -> "RowBlocks":
        """Return some blocks ``[n']``, and of each of these some units ``[n', u']`` in order."""
        columns = self.columns[blocks.unsqueeze(1), order]
        return RowBlocks(self.rows[blocks], columns, self.numbers[blocks].gather(1, order))

    def weights(self, matrix: Tensor) -> Tensor:
        """Return the weights of each unit. ``[rows, k]`` -> ``[n, s, u, t]``."""
        return matrix[self.rows[:, :, None, None], self.columns.unsqueeze(1)]


def _equal_parts(part: Tensor, count: int) -> Tensor:
    """Return the positions of each part. Shape ``[n]`` -> ``[count, n / count]``."""
    sizes = torch.bincount(part, minlength=count)
    if not (sizes == sizes[0]).all():
        raise _shape_error()
    return torch.argsort(part, stable=True).view(count, -1)


def _shape_error() -> ValueError:
    return ValueError(
        "The units of a layer must be rectangles of one size: the same inputs of each of their "
        "outputs. Got others. Leave that tensor out, or use another pattern."
    )
