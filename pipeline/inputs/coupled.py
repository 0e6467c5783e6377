"""Channels, heads or neurons as what is pruned: found in the graph of the file that ships."""

from dataclasses import replace

from mfac_compress.export import Coupling
from mfac_compress.mfac.coupled import Channel, Channels
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.quoting import listed
from mfac_compress.pipeline.recipe.schema import Recipe

_NEITHER = "none of its inputs or outputs can go as a whole"


def couple(
    targets: PruneTargets, coupling: Coupling, recipe: Recipe, processes: int
) -> PruneTargets:
    """Give targets the pattern of whole channels, and leave out tensors that no channel touches.

    Args:
        targets: Single tensors.
        coupling: Of the dense model's file.
        recipe: Says whether channels, heads or neurons are meant.
        processes: That share the work.

    Raises:
        InputError: If there is no such channel, or there are several processes.
    """
    kind, where = recipe.prune.pattern, recipe.where("prune.pattern")
    if processes > 1:
        raise InputError(
            f"{where}: must be pruned by one process where it is {kind}, whose weights lie in many "
            f"blocks of the Fisher. Got {processes} processes. Start one."
        )
    found = tuple(
        Channel(
            tuple((part.name, part.axis, part.places) for part in each.reads),
            tuple((part.name, part.axis, part.places) for part in each.computes),
            each.group,
        )
        for each in coupling.channels
        if each.kind == kind
    )
    usable = [c for c in found if all(name in targets.shapes for name, _, _ in c.reads)]
    if not usable:
        raise InputError(f"{where}: {_none(kind, found, coupling, targets)}")
    touched = {name for c in usable for name, _, _ in (*c.reads, *c.computes)}
    reasons = {name: _NEITHER for name in targets.shapes if name not in touched}
    coupled = replace(targets, pattern=Channels(tuple(usable)))
    coupled = coupled.without(reasons) if reasons else coupled
    try:
        coupled.units  # noqa: B018  (resolved once, here, where its errors can be named)
    except ValueError as error:
        raise InputError(f"{recipe.where('prune.overrides')}: {error}") from error
    return coupled


def _none(kind: str, found: tuple[Channel, ...], coupling: Coupling, targets: PruneTargets) -> str:
    """Say why no channel of a kind can go."""
    must = f"the model must have {kind} that can go as a whole. Got none"
    if found:
        others = [name for name, _, _ in found[0].reads if name not in targets.shapes]
        return (
            f"{must} of which all readers are pruned: {listed(others)} also reads them, and is "
            "left out. Change prune.include or prune.exclude."
        )
    if coupling.unfollowed:
        return (
            f"{must}. It is not known what these operators do to channels: "
            f"{listed(coupling.unfollowed)}. Use another pattern."
        )
    return f"{must}. Use another pattern."
