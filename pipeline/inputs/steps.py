"""How many weights go in each pruning step, and how many gradients choose them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mfac_compress.mfac.schedule import sparsity_schedule
from mfac_compress.mfac.units import Units
from mfac_compress.pipeline.recipe.schema import CalibrateSection, PruneSection


def steps_of(units: Units, section: PruneSection) -> list[list[float]]:
    """What share of its units a competition has lost after each step.

    Returns:
        For each step, the share for each sparsity that competitions have, in ascending order:
        there may be millions of competitions, but few sparsities.
    """
    schedule, ways = section.schedule, []
    for end in units.sparsity.unique().tolist():
        first = schedule.init
        if first is not None:
            first *= end / section.sparsity if section.sparsity else 1.0
        ways.append(sparsity_schedule(end, section.steps, schedule.interpolation, first))
    return [list(shares) for shares in zip(*ways, strict=True)]


def units_removed(units: Units, shares: Sequence[float]) -> Tensor:
    """How many units each competition has lost, by what :func:`steps_of` says of a step."""
    _, which = units.sparsity.unique(return_inverse=True)
    return units.removed(torch.tensor(shares, dtype=torch.float64)[which])


def gradients_of_steps(
    units: Units, prune: PruneSection, calibrate: CalibrateSection
) -> tuple[int, ...]:
    """The number of gradients of each step, by the share of all units that are gone before it."""
    if len(calibrate.counts) == 1:
        return (calibrate.gradients_at(0.0),) * prune.steps
    removed = (units_removed(units, shares) for shares in steps_of(units, prune)[:-1])
    reached = (int(gone.sum()) / units.count for gone in removed)
    return tuple(calibrate.gradients_at(sparsity) for sparsity in (0.0, *reached))
