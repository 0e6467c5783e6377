"""Cut dead channels out of a graph."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.channels import Bias, Channels, replace_constant
from mfac_compress.export.dead_channels.choice import dead_channels
from mfac_compress.export.dead_channels.moves import remaining
from mfac_compress.export.dead_channels.reading import read_channels
from mfac_compress.export.sparse.compose import name_nodes, remove_unused

Kept: TypeAlias = Mapping[str, tuple[tuple[int, ...] | None, ...]]
"""By initializer, the places along each axis that are left of it; None for all."""


def remove_dead_channels(model: ir.Model, *, round_to: int = 1) -> Kept:
    """Take out channels that nothing depends on, until there are none.

    Args:
        model: Changed in place. Nodes in topological order, shapes recorded.
        round_to: Layers keep so many dead channels that their number of outputs is a multiple, if
            it is at least that large.

    Returns:
        What is left of each initializer that was cut.
    """
    name_nodes(model)
    left: dict[str, list[np.ndarray | None]] = {}
    while True:
        channels = read_channels(model)
        dead = dead_channels(channels, round_to)
        if not dead.any():
            break
        _cut(model.graph, channels, dead, left)
        remove_unused(model.graph)
    return {
        name: tuple(None if places is None else tuple(places.tolist()) for places in axes)
        for name, axes in left.items()
        if name in model.graph.initializers
    }


def _cut(
    graph: ir.Graph, channels: Channels, dead: np.ndarray, left: dict[str, list[np.ndarray | None]]
) -> None:
    for bias in channels.biases:
        _add_to_bias(channels, bias, dead)
    for edit in channels.edits:
        edit(lambda each: ~dead[each])
    for (value, axis), own in channels.of_weight.items():
        places = (~dead[own]).nonzero()[0]
        if len(places) == len(own) or not value.uses():
            continue
        array = np.take(value.const_value.numpy(), places, axis=axis)
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        axes = left.setdefault(value.name, [None] * array.ndim)
        axes[axis] = places if axes[axis] is None else axes[axis][places]
    for value, own in channels.of_value.items():
        if dead[own].any():
            kept = remaining(~dead[own])
            value.shape = ir.Shape(
                n if size > 1 else d
                for n, size, d in zip(kept, own.shape, value.shape, strict=True)
            )


def _add_to_bias(channels: Channels, bias: Bias, dead: np.ndarray) -> None:
    """Let a layer's bias take over what constant inputs add that go."""
    effect = bias.effects[:, dead[bias.inputs]].sum(axis=1)
    if not effect.any():
        return
    node, place = bias.place
    old = node.inputs[place] if place < len(node.inputs) else None
    dtype = bias.layer.inputs[1].const_value.numpy().dtype
    array = (effect if old is None else old.const_value.numpy() + effect).astype(dtype)
    if old is not None and len(old.uses()) == 1:
        old.const_value = ir.tensor(array, name=old.name)
        return
    new = replace_constant(node, place, array)
    channels.of_weight[new, 0] = bias.outputs
