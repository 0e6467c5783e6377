"""What is removed together, and what competes with what: the pattern of the zeros.

A pattern turns the shapes of the tensors to prune into a :class:`~mfac_compress.mfac.layout.Layout`
and :class:`Units` before any gradient is taken, since the order of the columns decides which
weights share a block of the Fisher.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, Protocol

import torch
from torch import Tensor

from mfac_compress.mfac.layout import Layout, Shapes, TensorSlice


@dataclass(frozen=True)
class Units:
    """Sets of weights that go together, and the competitions in which they are ranked.

    Args:
        of_weight: Unit of each weight, from 0, in the order of their first columns. Integers,
            shape ``[d]``.
        competition: Competition of each unit, from 0. Integers, shape ``[u]``.
        sparsity: Share of its units that each competition loses in the end, in [0, 1). Float64,
            shape ``[competitions]``.
        freed_by: Unit whose removal leaves each weight without effect, so that it goes as well, at
            no cost; -1 for none. Integers, shape ``[d]``. None where no unit does so.
    """

    of_weight: Tensor
    competition: Tensor
    sparsity: Tensor
    freed_by: Tensor | None = None

    @property
    def count(self) -> int:
        """u, the number of units."""
        return len(self.competition)

    @property
    def single(self) -> bool:
        """Whether each weight is a unit of its own."""
        return self.count == len(self.of_weight)

    @property
    def digest(self) -> str:
        """SHA-256 in hex of all of it."""
        parts = [self.of_weight.int(), self.competition.int(), self.sparsity.double()]
        if self.freed_by is not None:
            parts.append(self.freed_by.int())
        return sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()

    @property
    def sizes(self) -> Tensor:
        """Number of units of each competition. Int64, shape ``[competitions]``."""
        return torch.bincount(self.competition, minlength=len(self.sparsity))

    def columns_by_size(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the numbers ``[n]`` of all units of s weights, and their columns ``[n, s]``."""
        sizes = torch.bincount(self.of_weight, minlength=self.count)
        starts, order = sizes.cumsum(0) - sizes, torch.argsort(self.of_weight, stable=True)
        for size in sizes.unique().tolist():
            numbers = (sizes == size).nonzero().flatten()
            yield numbers, order[starts[numbers, None] + torch.arange(size)]

    def within(self, blocks: Tensor) -> tuple["Units", Tensor]:
        """Divide units so that each part lies in one block.

        Args:
            blocks: Block of each column. Integers, shape ``[d]``.

        Returns:
            The parts as units, all of one competition, and the unit of each part.
        """
        same = self.of_weight[1:] == self.of_weight[:-1]
        ascending = bool((self.of_weight[1:] >= self.of_weight[:-1]).all())
        if ascending and not (same & (blocks[1:] != blocks[:-1])).any():
            return self, torch.arange(self.count)
        pairs = self.of_weight.long() * (int(blocks.max()) + 1) + blocks
        kinds, of_weight = torch.unique(pairs, return_inverse=True)
        number = number_by_first_column(of_weight, len(kinds))
        unit = torch.empty_like(kinds).scatter_(0, number, kinds // (int(blocks.max()) + 1))
        alone = torch.zeros(len(kinds), dtype=torch.int32)
        return Units(number[of_weight], alone, self.sparsity[:1]), unit

    def freed(self, mask: Tensor) -> Tensor:
        """Return a mask without the weights that have no effect any more.

        Args:
            mask: True = kept. Shape ``[d]``.
        """
        if self.freed_by is None:
            return mask
        alive = torch.zeros(self.count + 1, dtype=torch.bool, device=mask.device)
        alive[self.of_weight.to(mask.device)[mask].long()] = True
        alive[-1] = True  # what no unit frees
        return mask & alive[self.freed_by.to(mask.device).long()]

    def part(self, columns: slice) -> "Units":
        """Return the units of some adjacent columns, numbered from 0, without what they free.

        Raises:
            ValueError: If a unit has other columns as well.
        """
        of_weight = self.of_weight[columns]
        first, last = (int(end) for end in of_weight.aminmax())
        whole = (self.of_weight >= first) & (self.of_weight <= last)
        if int(whole.sum()) != len(of_weight):
            raise ValueError(
                "Each process must hold whole units. Got some that are divided. Use fewer "
                "processes, or blocks of the Fisher that hold whole units."
            )
        return Units(of_weight - first, self.competition[first : last + 1], self.sparsity)

    def removed(self, sparsity: Tensor | None = None) -> Tensor:
        """Number of units that each competition loses: at least the share, never all.

        Args:
            sparsity: Share of each competition; None for the last one, :attr:`sparsity`.

        Returns:
            Int64, shape ``[competitions]``.
        """
        share = self.sparsity if sparsity is None else sparsity.to(self.sparsity)
        rounded_up = torch.ceil(share * self.sizes - 1e-6).long()
        return torch.minimum(rounded_up, self.sizes - 1).clamp_min(0)


class Pattern(Protocol):
    """A rule for where zeros may be."""

    def resolve(
        self, shapes: Shapes, sparsity: float, own: Mapping[str, float] | None = None
    ) -> tuple[Layout, Units]:
        """Return the order of the columns, and their units.

        Args:
            shapes: Name to shape of the tensors to prune, in order.
            sparsity: Share to remove of all tensors together that are not in ``own``.
            own: Name to sparsity of the tensors whose units compete only with each other.
        """


@dataclass(frozen=True)
class Unstructured:
    """Each weight may go by itself.

    Example:
        >>> layout, units = Unstructured().resolve({"a": (2, 2), "b": (3,)}, 0.5, {"b": 0.9})
        >>> units.of_weight.tolist(), units.competition.tolist(), units.removed().tolist()
        ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 1, 1], [2, 2])
    """

    def resolve(
        self, shapes: Shapes, sparsity: float, own: Mapping[str, float] | None = None
    ) -> tuple[Layout, Units]:
        """See :class:`Pattern`."""
        layout, own = Layout.row_major(shapes), own or {}
        competition, sparsities = _competitions(layout, [t.size for t in layout], sparsity, own)
        of_weight = torch.arange(layout.size, dtype=torch.int32)
        return layout, Units(of_weight, competition, sparsities)


@dataclass(frozen=True)
class Block:
    """Neighbouring weights go together, so that a processor reads or skips them as one.

    Args:
        size: Number of weights of a unit.
        axis: Whether they are neighbouring outputs (0) or inputs (1) of a weight
            ``[outputs, inputs, ...]``.

    Example:
        >>> layout, units = Block(2, axis=0).resolve({"w": (4, 3)}, sparsity=0.5)
        >>> layout.flatten({"w": torch.arange(12).view(4, 3)}).tolist()
        [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
        >>> units.of_weight.tolist()
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """

    size: int
    axis: Literal[0, 1]

    def resolve(
        self, shapes: Shapes, sparsity: float, own: Mapping[str, float] | None = None
    ) -> tuple[Layout, Units]:
        """See :class:`Pattern`. Units are adjacent, so blocks of the Fisher hold whole ones where
        their side is a multiple of ``size``.

        Raises:
            ValueError: If a tensor has no such axis, or one that is no multiple of ``size``.
        """
        layout = _side_by_side(shapes, self.axis, self.size, f"Blocks of {self.size}")
        own = own or {}
        counts = [tensor.size // self.size for tensor in layout]
        competition, sparsities = _competitions(layout, counts, sparsity, own)
        of_weight = torch.arange(layout.size, dtype=torch.int32) // self.size
        return layout, Units(of_weight, competition, sparsities)


@dataclass(frozen=True)
class NM:
    """Of each m neighbouring inputs of an output n are kept, as processors for 2:4 expect it.

    Each weight is a unit of its own, and each such group a competition of its own: all lose the
    same share, (m − n) / m.

    Args:
        n: How many are kept.
        m: Of how many.

    Raises:
        ValueError: Unless 0 < n < m.

    Example:
        >>> layout, units = NM(2, 4).resolve({"w": (2, 4, 1, 2)}, sparsity=0.5)
        >>> layout.flatten({"w": torch.arange(16).view(2, 4, 1, 2)}).tolist()
        [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
        >>> units.competition.tolist()
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
        >>> units.removed().tolist()
        [2, 2, 2, 2]
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(
                f"n of m weights must be kept, 0 < n < m. Got {self.n} of {self.m}. Try 2 of 4."
            )

    @property
    def sparsity(self) -> float:
        """The only sparsity that the pattern has."""
        return (self.m - self.n) / self.m

    def resolve(
        self, shapes: Shapes, sparsity: float, own: Mapping[str, float] | None = None
    ) -> tuple[Layout, Units]:
        """See :class:`Pattern`. Groups are adjacent.

        Raises:
            ValueError: If a sparsity is not the pattern's, or a tensor has no axis of inputs, or
                one that is no multiple of m.
        """
        for given in (sparsity, *(own or {}).values()):
            if abs(given - self.sparsity) > 1e-6:
                raise ValueError(
                    f"sparsity must be {self.sparsity:.6g} where {self.n} of {self.m} weights are "
                    f"kept. Got {given}. Set it so, or use another pattern."
                )
        layout = _side_by_side(shapes, 1, self.m, f"Groups of {self.m}")
        _competitions(layout, [t.size for t in layout], sparsity, own or {})  # checks the names
        of_weight = torch.arange(layout.size, dtype=torch.int32)
        competition = of_weight // self.m
        sparsities = torch.full((layout.size // self.m,), self.sparsity, dtype=torch.float64)
        return layout, Units(of_weight, competition, sparsities)


def number_by_first_column(of_weight: Tensor, count: int) -> Tensor:
    """Number units anew, in the order of their first columns.

    Args:
        of_weight: Unit of each weight, in any numbering. Shape ``[d]``.
        count: u.

    Returns:
        The new number of each unit. Int64, shape ``[u]``.
    """
    columns = torch.arange(len(of_weight))
    first = torch.full((count,), len(columns)).scatter_reduce_(0, of_weight, columns, "amin")
    return torch.empty_like(first).scatter_(0, torch.argsort(first), torch.arange(count))


def _side_by_side(shapes: Shapes, axis: Literal[0, 1], size: int, what: str) -> Layout:
    """Return a layout in which each ``size`` neighbours along the axis are adjacent columns.

    Raises:
        ValueError: If a tensor has no such axis, or one that is no multiple of ``size``.
    """
    for name, shape in shapes.items():
        if len(shape) < 2 or shape[axis] % size:
            raise ValueError(
                f"{what} along axis {axis} must divide each tensor. Got {name} {list(shape)}. "
                "Leave that tensor out, or use another size or axis."
            )
    tensors, start, group = [], 0, size if axis == 0 else 1
    for name, shape in shapes.items():
        axes = (0, *range(2, len(shape)), 1)
        tensors.append(TensorSlice(name, tuple(shape), axes, start, group))
        start = tensors[-1].stop
    return Layout(tuple(tensors))


def _competitions(
    layout: Layout, counts: list[int], sparsity: float, own: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """Return the competition of each unit, given how many each tensor has, and their sparsities.

    One of all tensors that are not in ``own`` comes first, where there are such.
    """
    unknown = [name for name in own if name not in {t.name for t in layout}]
    if unknown:
        raise ValueError(f"own must name tensors that are pruned. Got {', '.join(unknown)}.")
    alone = [t.name for t in layout if t.name in own]
    together = [sparsity] if len(alone) < len(layout.tensors) else []
    sparsities = torch.tensor([*together, *(own[name] for name in alone)], dtype=torch.float64)
    if not ((sparsities >= 0) & (sparsities < 1)).all():
        raise ValueError(f"sparsity must be in [0, 1). Got {sparsities.tolist()}.")
    number = {name: len(together) + i for i, name in enumerate(alone)}
    each = torch.tensor([number.get(t.name, 0) for t in layout], dtype=torch.int32)
    return each.repeat_interleave(torch.tensor(counts)), sparsities
