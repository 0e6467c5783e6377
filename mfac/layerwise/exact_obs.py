"""ExactOBS: what each weight's removal costs a layer at its turn, the others adjusted.

The outputs of a linear layer are W X. If H = X Xᵀ, removing a set Q of weights of the row w and
adjusting the others adds

    w_Qᵀ ([H⁻¹]_QQ)⁻¹ w_Q,   for a single weight w_q² / [H⁻¹]_qq,

to the squared error of its output. Each row loses its cheapest unit, is adjusted, loses what is
cheapest now, and so on; :mod:`~mfac_compress.mfac.layerwise.removal` does it. Costs never fall from
one removal of a row to the next, so whatever number of the cheapest units is taken of all rows
together, in each row they are those that were removed first: the paper's global selection over
rows. The best weights under a given mask are unique, so
:mod:`~mfac_compress.mfac.layerwise.masked_solve` finds them from the mask alone.

References:
    Frantar, Singh, Alistarh (2022), Optimal Brain Compression, algorithm 1, and section 4 for
    blocks and N:M.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mfac_compress.mfac.layerwise.moment_matrix import (
    KeptInverse,
    check_finite,
    damped,
    ridge_error,
    similar_sets,
)
from mfac_compress.mfac.layerwise.removal import Quotas, remove_in_order
from mfac_compress.mfac.layerwise.row_blocks import RowBlocks
from mfac_compress.mfac.units import Units

# Elements of P of the rows that are at work at once.
_AT_ONCE = 1 << 25


def unit_costs(
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
    units: Units,
    removed: Tensor,
    *,
    keep: Mapping[str, Tensor] | None = None,
    ridge: float = 1e-6,
) -> Tensor:
    """Return the cost of each unit of all layers, for :func:`~mfac_compress.mfac.selection.select`.

    A competition that lies in a single row, as each of the groups of an N:M pattern does, is closed
    once it has lost its share; what is left of it costs infinity.

    Args:
        weights: The layers' matrices. Shape ``[g, r, k]`` each: groups, outputs, inputs.
        moments: H = X Xᵀ of each. Shape ``[g, k, k]``.
        numbers: The unit of each weight, ``units.of_weight`` in the form of the matrices. Shape
            ``[g, r, k]``.
        units: What goes together, and what competes with what.
        removed: How many units each competition loses in all. Shape ``[competitions]``.
        keep: True = kept so far; None for all. Shape ``[g, r, k]``.
        ridge: See :func:`layer_costs`.

    Returns:
        Float64, shape ``[u]``; infinity for units that are in none of the layers.
    """
    costs = torch.full((units.count,), torch.inf, dtype=torch.float64)
    for name, W in weights.items():
        first = int(numbers[name].min())
        own = slice(first, int(numbers[name].max()) + 1)
        unit = numbers[name] - first
        competition = units.competition[own].long()
        whole = torch.bincount(competition, minlength=len(removed)) == units.sizes
        quota = removed if whole[competition].all() and _lie_in_rows(unit, competition) else None
        costs[own] = layer_costs(
            W,
            moments[name],
            unit,
            keep=None if keep is None else keep[name],
            competition=None if quota is None else competition,
            quota=quota,
            ridge=ridge,
        ).cpu()
    return costs


def layer_costs(
    weights: Tensor,
    H: Tensor,
    unit: Tensor,
    *,
    keep: Tensor | None = None,
    competition: Tensor | None = None,
    quota: Tensor | None = None,
    ridge: float = 1e-6,
) -> Tensor:
    """Return the increase of a layer's squared error by each unit's removal at its turn.

    Args:
        weights: W; zero where not kept. Shape ``[g, r, k]``.
        H: X Xᵀ of the inputs of each group. Shape ``[g, k, k]``.
        unit: Unit of each weight, from 0. Units are rectangles of one size: some columns of one or
            more rows, which lose their units in a common order. Integers, shape ``[g, r, k]``.
        keep: True = kept so far; None for all. A unit is gone if none of its weights is kept.
            Shape ``[g, r, k]``.
        competition: Competition of each unit, where none lies in several rows. Shape ``[u]``.
        quota: How many units each competition loses in all. Shape ``[competitions]``.
        ridge: What is added to H's diagonal in units of its mean, at least
            :data:`~mfac_compress.mfac.layerwise.moment_matrix.MIN_RIDGE`. The default covers H from
            products in float32.

    Returns:
        Float64, shape ``[u]``: growing in the order of each row's removals, 0 for what has gone
        before, infinity for what is not removed.

    Raises:
        ValueError: If shapes do not agree, or units are no rectangles of one size.
        PrecisionError: If H is not positive definite with the ridge added.

    Example:
        Two inputs that are nearly equal. The first removal costs little, the second does not:

        >>> H = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]])
        >>> layer_costs(torch.tensor([[[1.0, 1.1]]]), H, torch.arange(2).view(1, 1, 2))
        tensor([0.0199, 4.3681], dtype=torch.float64)
    """
    _check(weights, H, unit, keep, ridge)
    blocks = RowBlocks.of(unit)
    keep = torch.ones_like(weights, dtype=torch.bool) if keep is None else keep
    W = weights.double().masked_fill(~keep, 0).flatten(0, 1)
    present = blocks.weights(keep.flatten(0, 1)).any(dim=3).any(dim=1)
    left = None
    if competition is not None:
        gone = torch.bincount(competition[blocks.numbers[~present]], minlength=len(quota))
        left = quota.to(gone) - gone
    size = blocks.columns.shape[2]
    costs = torch.zeros(present.numel(), dtype=torch.float64, device=W.device)

    def blocks_at_once(count: int) -> int:
        return _AT_ONCE // (count * size * W.shape[1])

    try:
        inverses = KeptInverse.of(damped(H, ridge))
        for some, order, is_open in similar_sets(present, blocks_at_once):
            own = blocks.part(some, order)
            group = own.rows // weights.shape[1]
            if (group == group[:, :1]).all():
                group = group[:, :1]  # one P for all rows of a block
            columns, valid = own.columns.flatten(1), is_open.repeat_interleave(size, dim=1)
            P = inverses.restricted(group, columns, valid)
            w = own.weights(W).unflatten(1, (group.shape[1], -1)).flatten(0, 1).flatten(2)
            quotas = None if left is None else Quotas(competition[own.numbers], left)
            steps = int(is_open.sum(dim=1).max())
            result = remove_in_order(P, w, is_open, steps, quotas)
            costs[own.numbers[is_open]] = result[is_open]
    except torch.linalg.LinAlgError as error:
        raise ridge_error(ridge, "H with it is not positive definite") from error
    return costs


def _lie_in_rows(unit: Tensor, competition: Tensor) -> bool:
    """Whether each competition's units lie in one block of rows. ``[g, r, k]``, ``[u]``."""
    row = unit.flatten(0, 1).min(dim=1, keepdim=True).values  # the same in all rows of a block
    of_weight = competition.to(unit.device)[unit.flatten(0, 1)]
    least, largest = (
        torch.zeros(int(competition.max()) + 1, dtype=row.dtype, device=row.device).scatter_reduce(
            0, of_weight.flatten(), row.expand_as(of_weight).flatten(), how, include_self=False
        )
        for how in ("amin", "amax")
    )
    return torch.equal(least, largest)


def _check(weights: Tensor, H: Tensor, unit: Tensor, keep: Tensor | None, ridge: float) -> None:
    k = weights.shape[-1]
    shapes = [weights.shape, unit.shape, weights.shape if keep is None else keep.shape]
    if weights.ndim != 3 or len(set(shapes)) > 1 or H.shape != (len(weights), k, k):
        raise ValueError(
            "weights, unit and keep must be [g, r, k] and H [g, k, k]. Got "
            f"{', '.join(str(list(shape)) for shape in shapes)} and {list(H.shape)}."
        )
    check_finite(ridge, weights, H)
