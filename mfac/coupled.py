"""Channels that go as a whole, with all weights that read them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac_compress.mfac.layout import Layout, Shapes
from mfac_compress.mfac.units import Units, number_by_first_column

Place = tuple[str, int, tuple[int, ...]]
"""A tensor, its axis, and places along it."""


@dataclass(frozen=True)
class Channel:
    """One channel, neuron or head.

    Args:
        reads: The places of the weights that multiply it.
        computes: The places of the weights that make it, whose bias and norm are not pruned.
        group: Channels that one tensor reads or computes have the same number.
    """

    reads: tuple[Place, ...]
    computes: tuple[Place, ...]
    group: int


@dataclass(frozen=True)
class Channels:
    """The weights that read a channel are one unit; those that compute it go with them, for free.

    Without its readers nothing depends on a channel, whatever its bias and its batch norm make of
    it. So its cost is that of its readers, over all tensors that read it; and what is left of these
    makes up for it, as each of their outputs has other inputs.

    Args:
        channels: Those that may go. Each tensor is read along one axis.

    Example:
        Two layers, ``b a x``; of their hidden neurons the second may go.

        >>> pattern = Channels((Channel((("b", 1, (1,)),), (("a", 0, (1,)),), 0),))
        >>> layout, units = pattern.resolve({"a": (2, 3), "b": (2, 2)}, sparsity=0.5)
        >>> units.of_weight.tolist(), units.freed_by.tolist()
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 7], [-1, -1, -1, 7, 7, 7, -1, -1, -1, -1])
    """

    channels: tuple[Channel, ...]

    def resolve(
        self, shapes: Shapes, sparsity: float, own: Mapping[str, float] | None = None
    ) -> tuple[Layout, Units]:
        """See :class:`~mfac_compress.mfac.units.Pattern`.

        A channel is a unit where all tensors that read it are among the shapes. Channels of a group
        that reads a tensor of ``own`` compete with each other only. Weights of no unit are units of
        their own, none of which goes.

        Raises:
            ValueError: If ``own`` has different sparsities for tensors of one group.
        """
        layout, own = Layout.row_major(shapes), own or {}
        usable = [c for c in self.channels if all(name in shapes for name, _, _ in c.reads)]
        of_weight = _owners(layout, [channel.reads for channel in usable])
        freed_by = _owners(layout, [channel.computes for channel in usable])
        alone = _own_sparsities(usable, own)
        groups = {group: 1 + place for place, group in enumerate(alone)}
        competition = torch.tensor([groups.get(c.group, 0) for c in usable], dtype=torch.int32)
        single = of_weight < 0
        of_weight[single] = len(usable) + torch.arange(int(single.sum()))
        stay = torch.full((int(single.sum()),), 1 + len(alone), dtype=torch.int32)
        number = number_by_first_column(of_weight, len(usable) + len(stay))
        competitions = torch.cat([competition, stay])
        sparsities = torch.tensor([sparsity, *alone.values(), 0.0], dtype=torch.float64)
        return layout, Units(
            number[of_weight],
            torch.empty_like(competitions).scatter_(0, number, competitions),
            sparsities,
            torch.where(freed_by < 0, freed_by, number[freed_by.clamp_min(0)]),
        )


def _owners(layout: Layout, places: list[tuple[Place, ...]]) -> Tensor:
    """Return, for each weight, the number of the channel that has a place at it; -1 for none."""
    shapes = {tensor.name: tensor.shape for tensor in layout}
    owners = {name: torch.full(shape, -1) for name, shape in shapes.items()}
    for number, of_channel in enumerate(places):
        for name, axis, at in of_channel:
            if name in owners:
                owners[name].index_fill_(axis, torch.tensor(at), number)
    return layout.flatten(owners)


def _own_sparsities(channels: list[Channel], own: Mapping[str, float]) -> dict[int, float]:
    """Return the sparsities of groups that compete by themselves."""
    found: dict[int, float] = {}
    for channel in channels:
        for name, _, _ in channel.reads:
            if name in own and found.setdefault(channel.group, own[name]) != own[name]:
                raise ValueError(
                    "Tensors that read the same channels must have the same sparsity. Got "
                    f"{own[name]} for {name} and {found[channel.group]} for another. Give both one."
                )
    return found
