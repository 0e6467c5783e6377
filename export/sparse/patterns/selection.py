"""Slice and Pad as a convolution: y[:, c + a] = x[:, c, ::s, ::s], the shortcut of thin ResNets.

    y = conv(x, W), with W 1x1, stride s, and a single 1 in the row of each channel that is kept

ONNX Runtime can compute these nodes itself, but only in its own layout: between sparse convolutions
that use another one, this is far less work than two layout conversions.
"""

from collections.abc import Mapping

import numpy as np

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import SparseOperator, Window

_CHANNELS, _HEIGHT, _WIDTH = 1, 2, 3


def match_selection(
    graph: Graph, position: int, shapes: Mapping[str, tuple[int, ...]]
) -> SparseOperator | None:
    """Return the operator of a chain of Slice nodes and a Pad that begins here, or None.

    Args:
        graph: The graph of the nodes.
        position: Position of the first node.
        shapes: Shapes of the values.
    """
    if not graph.is_operator(position, "Slice"):
        return None
    x = graph.nodes[position].input[0]
    if len(shapes.get(x, ())) != 4:
        return None
    strides, nodes, y = [1, 1], [], x
    current: int | None = position
    while graph.is_operator(current, "Slice"):
        steps = _steps(graph, current, shapes)
        if steps is None:
            return None
        strides = [old * new for old, new in zip(strides, steps, strict=True)]
        nodes.append(current)
        y = graph.nodes[current].output[0]
        current = graph.only_user(y)
    added = _added_channels(graph, current)
    if added is None:
        return None
    node = graph.nodes[current]
    channels = shapes[x][_CHANNELS]
    weight = np.pad(np.eye(channels, dtype=np.float32), (added, (0, 0)))[:, :, None, None]
    return SparseOperator(
        name=node.name,
        weight_name="",
        nodes=(*nodes, current),
        x=x,
        y=node.output[0],
        weight=weight,
        window=Window(strides=(strides[0], strides[1])),
        selection=True,
    )


def _steps(
    graph: Graph, position: int, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int] | None:
    """Return the strides; None if a Slice does anything but take every s-th row and column."""
    node = graph.nodes[position]
    parts = [graph.constant(name) for name in node.input[1:]]
    if len(parts) != 4 or any(part is None for part in parts):
        return None
    steps = {_HEIGHT: 1, _WIDTH: 1}
    for start, end, axis, step in zip(*(part.tolist() for part in parts), strict=True):
        whole = start == 0 and end >= 2**31 - 1
        if not whole or axis not in (steps if step > 1 else range(4)) or step < 1:
            return None
        if step > 1:
            steps[axis] *= step
    return steps[_HEIGHT], steps[_WIDTH]


def _added_channels(graph: Graph, position: int | None) -> tuple[int, int] | None:
    """Return how many zero channels a Pad adds before and after; None if it does anything else."""
    if not graph.is_operator(position, "Pad"):
        return None
    node = graph.nodes[position]
    pads = graph.constant(node.input[1]) if len(node.input) > 1 else None
    if pads is None or pads.size != 8 or attributes(node).get("mode", b"constant") != b"constant":
        return None
    if len(node.input) > 2 and node.input[2] and graph.scalar(node.input[2]) != 0:
        return None
    if len(node.input) > 3 and node.input[3]:  # axes
        return None
    others = [p for place, p in enumerate(pads) if place % 4 != _CHANNELS]
    before, behind = int(pads[_CHANNELS]), int(pads[4 + _CHANNELS])
    return (before, behind) if not any(others) and min(before, behind) >= 0 else None
