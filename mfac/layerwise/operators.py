"""The operators of layers: which inputs each row of their matrices is multiplied with.

Each operator multiplies matrices W ``[groups, rows, columns]`` with a vector of its input at each
of its *positions*: a row of a linear layer's input, over all leading axes, or a window of a
convolution's. Positions are numbered as in the output, the first axis being the slowest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.mfac.batch import Tree, size


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of a tensor at all positions, each put together from rows of a table.

    Args:
        table: Shape ``[rows, channels]``.
        shape: Lengths of the axes of the positions.
        steps: Rows from one position to the next along each of these axes.
        within: Rows of a vector, counted from its position.
        groups: g; each has ``channels / g`` channels.
    """

    table: Tensor
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    within: Tensor
    groups: int

    @property
    def count(self) -> int:
        """Number of positions."""
        return prod(self.shape)

    @property
    def width(self) -> int:
        """Numbers at a position, in all groups."""
        return len(self.within) * self.table.shape[1]

    def at(self, chosen: Tensor) -> Tensor:
        """The vectors at some positions. ``[n]`` -> ``[g, n, k]``."""
        first = torch.zeros_like(chosen)
        for at, step in zip(torch.unravel_index(chosen, self.shape), self.steps, strict=True):
            first += at * step
        rows = (first[:, None] + self.within).flatten().to(self.table.device)
        picked = self.table.index_select(0, rows)
        if self.groups == 1:
            return picked.view(1, len(chosen), -1)
        apart = picked.view(len(chosen), len(self.within), self.groups, -1)
        return apart.permute(2, 0, 1, 3).reshape(self.groups, len(chosen), -1)


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ for each row of x.

    Args:
        rows: r, length of y.
        columns: k, length of x.
        axis: Axis of x and y along which these lengths lie: -1, or -2 in y = W x.
    """

    rows: int
    columns: int
    axis: int = -1
    groups: int = 1

    def inputs(self, x: Tensor, y: Tensor) -> Vectors:
        """The vectors of an input, whose output is y."""
        return self._vectors(x, self.columns)

    def outputs(self, y: Tensor) -> Vectors:
        """The vectors of an output."""
        return self._vectors(y, self.rows)

    def positions(self, y: Tensor) -> int:
        """Number of positions of an output."""
        return y.numel() // self.rows

    def ordered(self, moments: Tensor) -> Tensor:
        """Bring the columns of sums over :meth:`inputs` into the order of the matrix."""
        return moments

    def _vectors(self, tensor: Tensor, length: int) -> Vectors:
        table = tensor.movedim(self.axis, -1).reshape(-1, length)
        return Vectors(table, (len(table),), (1,), torch.zeros(1, dtype=torch.long), 1)


@dataclass(frozen=True)
class Convolution:
    """A convolution over any number of axes, of ``[n, channels, ...]``.

    A transposed one is a convolution of its input with zeros put in between, by a mirrored kernel.

    Args:
        groups: g.
        rows: r, outputs of each group.
        kernel: Lengths of the window.
        stride: Of the windows.
        dilation: Distance of a window's elements.
        before: Zeros put before each axis; negative: elements taken away.
        spread: Distance of the input's elements: the stride of a transposed convolution.
        transposed: Whether it is one.
        channels: Inputs of each group.
    """

    groups: int
    rows: int
    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    spread: tuple[int, ...]
    transposed: bool = False

    @property
    def columns(self) -> int:
        """k, length of a window."""
        return self.channels * prod(self.kernel)

    def inputs(self, x: Tensor, y: Tensor) -> Vectors:
        """The windows of an input, whose output is y, in an order of its own: the channels last."""
        x = self._padded(x, tuple(y.shape[2:])).movedim(1, -1).contiguous()
        steps = [prod(x.shape[i + 1 : -1]) for i in range(x.ndim - 1)]
        within = torch.zeros(1, dtype=torch.long)
        for length, dilation, step in zip(self.kernel, self.dilation, steps[1:], strict=True):
            within = (within[:, None] + torch.arange(length) * (dilation * step)).flatten()
        strides = (1, *self.stride)
        return Vectors(
            x.view(-1, x.shape[-1]),
            (len(x), *y.shape[2:]),
            tuple(s * step for s, step in zip(strides, steps, strict=True)),
            within,
            self.groups,
        )

    def positions(self, y: Tensor) -> int:
        """Number of positions of an output."""
        return y.numel() // y.shape[1]

    def outputs(self, y: Tensor) -> Vectors:
        """The vectors of an output."""
        table = y.movedim(1, -1).reshape(-1, y.shape[1])
        return Vectors(table, (len(table),), (1,), torch.zeros(1, dtype=torch.long), self.groups)

    def ordered(self, moments: Tensor) -> Tensor:
        """Bring the columns of sums over :meth:`inputs` into the order of the matrix."""
        apart = moments.unflatten(-1, (prod(self.kernel), self.channels))
        return apart.transpose(-1, -2).flatten(-2)

    def _padded(self, x: Tensor, out: tuple[int, ...]) -> Tensor:
        x = self._with_zeros_between(x)
        padding = []
        for axis, length in enumerate(out):
            reach = (length - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis]
            before = self.before[axis]
            padding.append((before, reach + 1 - before - x.shape[2 + axis]))
        return F.pad(x, [n for pair in reversed(padding) for n in pair])

    def _with_zeros_between(self, x: Tensor) -> Tensor:
        if all(step == 1 for step in self.spread):
            return x
        lengths = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.spread, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *lengths)
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in self.spread))] = x
        return spread


Operator = Linear | Convolution


def choose_positions(
    operator: Operator,
    y: Tensor,
    inputs: Tree,
    positions: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Choose random positions of a batch, about equally many in each sample.

    Args:
        operator: Whose positions.
        y: Its output.
        inputs: Of the model. Tokens that their ``attention_mask`` ``[n, length]`` marks as padding
            are left out, where there is a position for each token.
        positions: How many of each sample; None for all.
        generator: On the CPU.

    Returns:
        Position numbers, ascending. Unless all are taken, one lies in each of
        ``samples · positions`` equal ranges, so no region of a sample is missed by chance.
    """
    total, count = operator.positions(y), None if positions is None else positions * size(inputs)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    counts = mask is not None and mask.ndim == 2 and mask.numel() == total
    if not counts or (y.ndim > 2 and y.shape[:2] != mask.shape):
        return _choose(total, count, generator)
    tokens = mask.flatten().nonzero().flatten().cpu()
    return tokens[_choose(len(tokens), count, generator)]


def _choose(total: int, count: int | None, generator: torch.Generator | None) -> Tensor:
    count = total if count is None else count
    if count >= total:
        return torch.arange(total)
    within = torch.rand(count, dtype=torch.float64, generator=generator)
    return ((torch.arange(count) + within) * (total / count)).long().clamp_(max=total - 1)
