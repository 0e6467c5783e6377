"""Which of the channels that could go do go."""

import numpy as np

from mfac_compress.export.dead_channels.channels import Channels
from mfac_compress.export.dead_channels.classes import STAYS


def dead_channels(channels: Channels, round_to: int) -> np.ndarray:
    """Choose the channels to take out: all but those that some output of the graph needs.

    Values must stay tensors: where a value's channels lie along several axes, as heads and their
    elements do, only whole slices of it can go, and one channel stays. A layer keeps so many that
    their number stays a multiple of ``round_to``, if it has that many.

    Args:
        channels: What was read of a graph.
        round_to: 1 for as few as possible.

    Returns:
        True = goes. Booleans, by the channels' numbers.
    """
    roots = channels.classes.roots()
    dead = np.ones(len(roots), dtype=bool)
    dead[STAYS] = False
    several = []
    for value, each in channels.of_value.items():
        axes = [axis for axis, size in enumerate(each.shape) if size > 1]
        free = [axis for axis in axes if (value, axis) not in channels.fixed]
        if len(axes) > 1 or free != axes:
            several.append((each, free))
    while True:
        before = dead.sum()
        for layer in reversed(channels.needs):
            live = ~dead[roots[layer.outputs]]
            dead[roots[layer.inputs[layer.used[live].any(axis=0)]]] = False
        for each, axes in several:
            gone = dead[roots[each]]
            dead[roots[each][gone & ~_slices(gone, axes)]] = False
        for each in channels.of_value.values():
            if dead[roots[each]].all():
                dead[roots[each.flat[0]]] = False
        for outputs in channels.producers:
            _round_up(dead, roots[outputs], round_to)
        if dead.sum() == before:
            return dead[roots]


def _slices(gone: np.ndarray, axes: list[int]) -> np.ndarray:
    """Return which elements lie in a slice across one of the axes that goes as a whole."""
    whole = np.zeros_like(gone)
    for axis in axes:
        others = tuple(a for a in range(gone.ndim) if a != axis)
        whole |= gone.all(axis=others, keepdims=True)
    return whole


def _round_up(dead: np.ndarray, roots: np.ndarray, round_to: int) -> None:
    """Let channels of a layer stay until their number is a multiple.

    Args:
        dead: By class. Changed in place.
        roots: The classes of the layer's outputs.
        round_to: The number.
    """
    step = round_to if len(roots) >= round_to else 1
    while True:
        gone = dead[roots]
        kept = len(roots) - gone.sum()
        if not gone.any() or (kept and kept % step == 0):
            return
        dead[roots[gone.argmax()]] = False
