"""Pruning layer by layer as a function: weights and moments of inputs in, a mask and weights out.

Where :func:`mfac_compress.mfac.pruning.prune` weighs a unit by the curvature of the loss, this
weighs it by the error of its layer's output: no gradients, no labels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mfac_compress.mfac.layerwise.exact_obs import unit_costs
from mfac_compress.mfac.layerwise.layers import Layer
from mfac_compress.mfac.layerwise.masked_solve import masked_least_squares
from mfac_compress.mfac.layerwise.moments import Moments
from mfac_compress.mfac.layout import Layout
from mfac_compress.mfac.pruning import Pruned
from mfac_compress.mfac.selection import select
from mfac_compress.mfac.units import Units


def prune_layers(
    weights: Tensor,
    layout: Layout,
    units: Units,
    layers: Mapping[str, Layer],
    moments: Mapping[str, Moments],
    *,
    removed: Tensor | None = None,
    keep: Tensor | None = None,
    relative: bool = False,
    update: bool = True,
    ridge: float = 1e-4,
) -> Pruned:
    """Remove the units that cost their layer's output least, and let the others make up for them.

    Nothing that is passed in changes.

    Args:
        weights: w. Shape ``[d]``.
        layout: Of the weights; each of its tensors is a layer.
        units: What goes together, and what competes with what.
        layers: By name, of a :class:`~mfac_compress.mfac.layerwise.graph.LayerGraph`.
        moments: Of each layer's inputs.
        removed: How many units each competition loses in all; None for ``units.removed()``. Shape
            ``[competitions]``.
        keep: True = kept so far; None for all. Removed weights stay removed. Shape ``[d]``.
        relative: Count a cost in units of its layer's squared output, so that layers can compete
            with each other; their outputs may be of any scale.
        update: Whether the kept weights become the best ones under the mask.
        ridge: What is added to H's diagonal, as a multiple of its mean.

    Raises:
        PrecisionError: If the ridge is too small.
    """
    keep = torch.ones_like(weights, dtype=torch.bool) if keep is None else keep
    removed = units.removed() if removed is None else removed
    numbers = layout.unflatten(units.of_weight.to(weights.device))
    W, kept, of_weight = (
        {t.name: layers[t.name].matrix.matrices(tensors[t.name]) for t in layout}
        for tensors in (layout.unflatten(weights), layout.unflatten(keep), numbers)
    )
    H = {t.name: moments[t.name].H for t in layout}
    costs = unit_costs(W, H, of_weight, units, removed, keep=kept, ridge=ridge)
    if relative:
        for name, unit in of_weight.items():
            energy = float(((W[name].double() @ H[name]) * W[name]).sum())
            costs[int(unit.min()) : int(unit.max()) + 1] /= energy if energy > 0 else 1.0
    mask = select(costs.to(weights.device), units, removed, keep)
    if not update:
        return Pruned(weights.masked_fill(~mask, 0), mask, costs)
    masks = layout.unflatten(mask)
    best = {}
    for name, present in W.items():
        matrix = layers[name].matrix
        solved = masked_least_squares(present, H[name], matrix.matrices(masks[name]), ridge=ridge)
        best[name] = matrix.weight(solved)
    return Pruned(layout.flatten(best).masked_fill(~mask, 0), mask, costs)
