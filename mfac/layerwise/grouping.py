"""Which channels lie side by side, so that blocks of neighbouring weights lose little.

A block of weights goes as a whole, so it should hold weights that are alike: all large or all
small. Which channels are neighbours is free for those that can change places. With s(w) = w² / Σw²
in each tensor, and the blocks' sums u in descending order, channels are exchanged as long as

    Σ max(u − τ, 0),   τ the sum of the least block that the sparsity keeps,

grows: for a given τ this is what the kept blocks hold beyond the threshold. No data are needed: by
the inverse Fisher, groups found so lose nearly as little as groups found by it.

References:
    Pool, Yu (2021), Channel permutations for N:M sparsity, section 5 (greedy swaps).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mfac_compress.mfac.layerwise.channels import ChannelSet

_ROUNDS = 2  # τ is found anew for each
_SWEEPS = 20
_STARTS = 4  # random ones, beside the order that there is; for small sets only
_SMALL = 64
# Weights of each channel that are looked at: the search takes channels² times as many operations.
_MOST_SEEN = 1 << 13
_LEAST_GAIN = 1e-9


def best_orders(
    sets: Sequence[ChannelSet],
    weights: Mapping[str, Tensor],
    *,
    size: int,
    axis: int,
    sparsity: float,
    seed: int = 0,
) -> list[Tensor | None]:
    """Find for each set an order of its channels in which blocks of neighbours are alike.

    Args:
        sets: Of one model.
        weights: Name to weights of the tensors that are pruned in blocks.
        size: Weights of a block.
        axis: Axis along which they are neighbours.
        sparsity: Share of the blocks that will go.
        seed: Of the random starts.

    Returns:
        For each set what :meth:`ChannelSet.reorder` takes; None where none of its tensors is
        pruned, or its channels share blocks with others or lie in other blocks elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [_Grouping.of(channels, weights, size, axis, generator) for channels in sets]
    groupings = [grouping for grouping in found if grouping is not None]
    if not groupings:
        return [None] * len(sets)
    orders = [torch.arange(len(grouping.saliency)) for grouping in groupings]
    for number in range(_ROUNDS):
        sums = [g.sums(order).flatten() for g, order in zip(groupings, orders, strict=True)]
        threshold = _threshold(torch.cat(sums), sparsity)
        starts = _STARTS if number == 0 else 0
        orders = [
            grouping.improved(order, threshold, generator, starts)
            for grouping, order in zip(groupings, orders, strict=True)
        ]
    given = iter(zip(groupings, orders, strict=True))
    return [None if g is None else g.of_channels(next(given)[1]) for g in found]


def _threshold(sums: Tensor, sparsity: float) -> float:
    removed = min(int(sparsity * len(sums)), len(sums) - 1)
    return sums.kthvalue(removed + 1).values.item()


class _Grouping:
    """The channels of a set, the first ``size`` of an order being one block, and so on.

    Args:
        saliency: Of each channel's weights. Shape ``[channels, weights]``.
        size: Channels of a block.
        slots: Channels in the order of their places, block after block.
    """

    def __init__(self, saliency: Tensor, size: int, slots: Tensor) -> None:
        self.saliency, self._size, self._slots = saliency[slots], size, slots

    @classmethod
    def of(
        cls,
        channels: ChannelSet,
        weights: Mapping[str, Tensor],
        size: int,
        axis: int,
        generator: torch.Generator,
    ) -> "_Grouping | None":
        """The set's channels in the blocks that they are in; None if these are not its own."""
        blocks, parts = None, []
        for (name, along), at in channels.places.items():
            if along != axis or name not in weights:
                continue
            if at.shape[1] != 1:
                return None
            own = at[:, 0] // size
            # Numbered from 0: tensors may hold the same channels at other places.
            _, own = own.unique(return_inverse=True)
            if blocks is not None and not torch.equal(own, blocks):
                return None
            blocks = own
            squares = weights[name].detach().cpu().double().square()
            part = (squares / squares.sum().clamp_min(1e-300)).movedim(axis, 0).flatten(1)
            parts.append(part[at[:, 0]])
        if blocks is None or not (torch.bincount(blocks) == size).all():
            return None
        saliency = torch.cat(parts, dim=1)
        if saliency.shape[1] > _MOST_SEEN:
            seen = torch.randperm(saliency.shape[1], generator=generator)[:_MOST_SEEN]
            saliency = saliency[:, seen.sort().values]
        return cls(saliency, size, torch.argsort(blocks, stable=True))

    def sums(self, order: Tensor) -> Tensor:
        """Saliency of each block. ``[channels]`` -> ``[blocks, weights]``."""
        return self.saliency[order].unflatten(0, (-1, self._size)).sum(dim=1)

    def improved(
        self, order: Tensor, threshold: float, generator: torch.Generator, starts: int
    ) -> Tensor:
        """The best order that exchanges lead to, from the given one and from some random ones."""
        count = len(order)
        begun = [order]
        if count <= _SMALL:
            begun += [torch.randperm(count, generator=generator) for _ in range(starts)]
        ended = [self._exchanged(each, threshold) for each in begun]
        return max(ended, key=lambda each: _excess(self.sums(each), threshold).sum().item())

    def _exchanged(self, order: Tensor, threshold: float) -> Tensor:
        order, block = order.clone(), torch.arange(len(order)) // self._size
        least = _LEAST_GAIN * _excess(self.sums(order), threshold).sum()
        for _ in range(_SWEEPS):
            before = order.clone()
            for place in range(len(order)):
                sums, rows = self.sums(order), self.saliency[order]
                value = _excess(sums, threshold)
                mine = block[place]
                change = rows - rows[place]
                gain = _excess(sums[mine] + change, threshold) - value[mine]
                gain += _excess(sums[block] - change, threshold) - value[block]
                gain[block == mine] = 0
                other = int(gain.argmax())
                if gain[other] > least:
                    order[[place, other]] = order[[other, place]]
            if torch.equal(order, before):
                break
        return order

    def of_channels(self, order: Tensor) -> Tensor:
        """An order of the set's channels, from one of its slots."""
        result = torch.empty_like(order)
        result[self._slots] = self._slots[order]
        return result


def _excess(sums: Tensor, threshold: float) -> Tensor:
    return (sums - threshold).clamp_min(0).sum(dim=-1)
