"""Pruning as a function: weights, curvature and a pattern in, a mask and new weights out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mfac_compress.mfac.fisher import Inverse
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup
from mfac_compress.mfac.saliency import Selection, magnitude_costs, unit_costs
from mfac_compress.mfac.selection import select
from mfac_compress.mfac.units import Units
from mfac_compress.mfac.update import Update, remove_weights


@dataclass(frozen=True)
class Pruned:
    """Weights after a removal.

    Attributes:
        weights: Exactly +0 where removed. Shape ``[d]``.
        mask: True = kept. Shape ``[d]``.
        costs: What the removal of each unit was estimated to cost. Shape ``[u]``.
    """

    weights: Tensor
    mask: Tensor
    costs: Tensor

    @property
    def sparsity(self) -> float:
        """Share of the weights that is removed."""
        return 1 - self.mask.float().mean().item()


def prune(
    weights: Tensor,
    inverse: Inverse,
    units: Units,
    *,
    removed: Tensor | None = None,
    keep: Tensor | None = None,
    selection: Selection | None = None,
    update: Update = "joint",
    columns: slice = slice(None),
    group: ProcessGroup = SINGLE,
) -> Pruned:
    """Remove the units that cost least and let the other weights make up for them.

    Nothing that is passed in changes. One inverse serves any number of removals.

    Args:
        weights: w. Shape ``[d]``.
        inverse: F⁻¹ at these weights.
        units: What goes together, and what competes with what.
        removed: How many units each competition loses in all; None for the last sparsities,
            ``units.removed()``. Shape ``[competitions]``.
        keep: True = kept so far; None for all. Removed weights stay removed. Shape ``[d]``.
        selection: How units are ranked; see :func:`~mfac_compress.mfac.saliency.unit_costs`.
        update: How the kept weights change; see
            :func:`~mfac_compress.mfac.update.remove_weights`.
        columns: Those that ``inverse`` is of, where several processes divide them. Each has the
            whole of everything else, and gets the whole result.
        group: These processes.

    Raises:
        ValueError: If sequential selection is asked for without blocks.

    Example:
        Two weights that always change together: one takes over for the other.

        >>> from mfac_compress.mfac import Unstructured, fisher_of, invert
        >>> layout, units = Unstructured().resolve({"w": (2, 2)}, sparsity=0.25)
        >>> G = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        >>> pruned = prune(torch.tensor([1.0, 2.0, 3.0, 4.0]), invert(fisher_of(G), 1e-6), units)
        >>> layout.unflatten(pruned.weights)["w"]
        tensor([[0.0000, 3.0000],
                [3.0000, 4.0000]])
    """
    keep = torch.ones_like(weights, dtype=torch.bool) if keep is None else keep
    own_weights, own_keep = weights[columns], keep[columns]
    with group.raise_on_every_rank():
        own_costs = unit_costs(own_weights, inverse, units.part(columns), own_keep, selection)
    # All select from the same costs, so their masks are the same.
    costs = group.all_gather(own_costs)
    mask = select(costs, units, units.removed() if removed is None else removed, keep)
    updated = group.all_gather(remove_weights(own_weights, mask[columns], inverse, update))
    # What has no effect any more needs nothing to make up for it.
    left = units.freed(mask)
    return Pruned(updated.masked_fill(~left, 0), left, costs)


def prune_by_magnitude(
    weights: Tensor, units: Units, *, removed: Tensor | None = None, keep: Tensor | None = None
) -> Pruned:
    """Remove the smallest units and correct nothing. Arguments as of :func:`prune`."""
    keep = torch.ones_like(weights, dtype=torch.bool) if keep is None else keep
    costs = magnitude_costs(weights, units)
    mask = select(costs, units, units.removed() if removed is None else removed, keep)
    mask = units.freed(mask)
    return Pruned(weights.masked_fill(~mask, 0), mask, costs)
