"""Which weights go with a channel, by the same reading that cuts it out of the file."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.channels import Channels
from mfac_compress.export.dead_channels.choice import whole_slices
from mfac_compress.export.dead_channels.classes import STAYS
from mfac_compress.export.dead_channels.reading import read_channels
from mfac_compress.export.passes import TRANSPOSED

Kind = Literal["channels", "heads", "neurons"]


@dataclass(frozen=True)
class Part:
    """Places along one axis of a parameter.

    Args:
        name: Of the parameter.
        axis: Its axis.
        places: Along it, ascending.
    """

    name: str
    axis: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Coupled:
    """A channel with all that goes together with it.

    Where the weights that read it are zero, nothing depends on it any more, so that those that
    compute it can go as well.

    Args:
        kind: ``heads`` of attention; ``channels`` that a convolution computes or reads; or
            ``neurons``.
        reads: Of each weight that reads it, the inputs.
        computes: Of each weight that computes it, the outputs.
        group: Channels that share an axis of a weight have the same number.
    """

    kind: Kind
    reads: tuple[Part, ...]
    computes: tuple[Part, ...]
    group: int


@dataclass(frozen=True)
class Coupling:
    """The channels of a graph that can go.

    Args:
        channels: In the order of the graph.
        unfollowed: Operators whose channels stay, since it is not known what they do to them.
    """

    channels: tuple[Coupled, ...]
    unfollowed: tuple[str, ...]


def find_coupling(model: ir.Model) -> Coupling:
    """Find the channels of a graph that can go, each with all weights that go together with it.

    Args:
        model: As for :func:`remove_dead_channels`. Not changed but for missing shapes.
    """
    channels = read_channels(model)
    roots = channels.classes.roots()
    able = _able(channels, roots)
    heads = {int(root) for each in channels.heads for root in np.unique(roots[each])}
    reads, computes = (
        _parts(channels, axes, roots) for axes in (channels.inputs, channels.outputs)
    )
    convolutions = {
        int(root)
        for value, axis in (*channels.inputs, *channels.outputs)
        if len(value.shape) > 2
        for root in np.unique(roots[channels.of_weight[value, axis]])
    }
    groups = _groups(reads, computes)
    found = []
    for root in sorted(reads):
        if able[root] and root in computes:
            kind = "channels" if root in convolutions else "neurons"
            kind = "heads" if root in heads else kind
            found.append(Coupled(kind, tuple(reads[root]), tuple(computes[root]), groups[root]))
    unfollowed = (f"{node.op_type} ({node.name})" for node in channels.unfollowed)
    return Coupling(tuple(found), tuple(unfollowed))


def _able(channels: Channels, roots: np.ndarray) -> np.ndarray:
    """Return which classes can go by themselves. Booleans, by root."""
    able = np.ones(len(roots), dtype=bool)
    able[STAYS] = False
    for each, axes in channels.several_axes():
        for root in np.unique(roots[each]):
            gone = roots[each] == root
            if (gone & ~whole_slices(gone, axes)).any():
                able[root] = False
    return able


def _parts(
    channels: Channels, axes: list[tuple[ir.Value, int]], roots: np.ndarray
) -> dict[int, list[Part]]:
    """Return the parts of weights by class."""
    found = defaultdict(list)
    for value, axis in dict.fromkeys(axes):
        own, name, turned = roots[channels.of_weight[value, axis]], value.name, axis
        if name.endswith(TRANSPOSED):
            name, turned = name.removesuffix(TRANSPOSED), 1 - axis
        for root in np.unique(own):
            places = tuple((own == root).nonzero()[0].tolist())
            found[int(root)].append(Part(name, turned, places))
    return found


def _groups(*parts: dict[int, list[Part]]) -> dict[int, int]:
    """Number classes so that those that share an axis of a weight have the same number."""
    group: dict[int, int] = {}
    by_axis = defaultdict(list)
    for each in parts:
        for root, own in each.items():
            for part in own:
                by_axis[part.name, part.axis].append(root)
    for roots in by_axis.values():
        moving = [root for root in roots if root != STAYS]
        for root in moving:
            first, other = _first(group, moving[0]), _first(group, root)
            group[max(first, other)] = min(first, other)
    return {root: _first(group, root) for each in parts for root in each}


def _first(group: dict[int, int], root: int) -> int:
    while group.setdefault(root, root) != root:
        root = group[root]
    return root
