"""The choice of the units that go: the cheapest of each competition."""

import torch
from torch import Tensor

from mfac_compress.mfac.units import Units


def select(costs: Tensor, units: Units, removed: Tensor, keep: Tensor) -> Tensor:
    """Remove the cheapest units of each competition.

    Args:
        costs: Increase of the loss by each unit's removal, >= 0; infinity for units that must
            stay. Shape ``[u]``.
        units: The units and their competitions.
        removed: How many units each competition loses in all. Shape ``[competitions]``.
        keep: True = kept so far. Removed weights stay removed. Shape ``[d]``.

    Returns:
        The new mask, a subset of ``keep``: each competition has lost exactly ``removed`` units,
        more only where ``keep`` has already lost more. Of units of equal cost the first go. Shape
        ``[d]``.

    Raises:
        ValueError: If a unit that would go costs infinity.
    """
    of_weight = units.of_weight.to(costs.device)
    costs = costs.masked_fill(~_alive(of_weight, units, keep), -1)  # what is gone goes first
    order = torch.argsort(costs, stable=True)
    if len(units.sparsity) > 1:
        competition = units.competition.to(costs.device)
        order = order[torch.argsort(competition[order], stable=True)]
    counts = torch.stack([removed.cpu(), units.sizes.cpu() - removed.cpu()], dim=1)
    first = torch.tensor([True, False]).repeat(len(counts)).repeat_interleave(counts.flatten())
    chosen = torch.ones(units.count, dtype=torch.bool, device=costs.device)
    chosen[order[first.to(costs.device)]] = False
    if costs[~chosen].isposinf().any():
        raise ValueError(
            "Units that are removed must have a finite cost. Got "
            f"{int(costs[~chosen].isposinf().sum())} that cost infinity. Remove fewer, or let the "
            "costs cover more of them."
        )
    return keep & chosen[of_weight]


def _alive(of_weight: Tensor, units: Units, keep: Tensor) -> Tensor:
    """Whether any weight of each unit is kept. Shape ``[u]``."""
    if units.single:
        return keep
    alive = torch.zeros(units.count, dtype=torch.bool, device=keep.device)
    alive[of_weight[keep]] = True
    return alive
