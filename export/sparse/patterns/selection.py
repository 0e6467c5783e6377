"""Slice and Pad as a convolution: y[:, c + a] = x[:, c, ::s, ::s], the shortcut of thin ResNets.

    y = conv(x, W), with W 1x1, stride s, and a single 1 in the row of each channel that is kept

ONNX Runtime can compute these nodes itself, but only in its own layout: between sparse convolutions
that use another one, this is far less work than two layout conversions.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, attributes, is_operator, only_user
from mfac_compress.export.sparse.nodes import Window
from mfac_compress.export.sparse.operator import SparseOperator

_CHANNELS, _HEIGHT, _WIDTH = 1, 2, 3


def match_selection(
    graph: Graph, node: ir.Node, shapes: Mapping[str, tuple[int, ...]]
) -> SparseOperator | None:
    """Return the operator of a chain of Slice nodes and a Pad that begins here, or None.

    Args:
        graph: The graph of the nodes.
        node: The first node.
        shapes: Shapes of the values.
    """
    if not is_operator(node, "Slice"):
        return None
    x = node.inputs[0]
    shape = shapes.get(x.name, ())
    if len(shape) != 4:
        return None
    strides, nodes = [1, 1], []
    current: ir.Node | None = node
    while is_operator(current, "Slice"):
        steps = _steps(graph, current)
        if steps is None:
            return None
        strides = [old * new for old, new in zip(strides, steps, strict=True)]
        nodes.append(current)
        current = only_user(current.outputs[0])
    added = _added_channels(graph, current)
    if added is None:
        return None
    weight = np.pad(np.eye(shape[_CHANNELS], dtype=np.float32), (added, (0, 0)))
    return SparseOperator(
        name=current.name,
        weight_name="",
        nodes=(*nodes, current),
        x=x,
        weight=weight[:, :, None, None],
        window=Window(strides=(strides[0], strides[1])),
        selection=True,
    )


def _steps(graph: Graph, node: ir.Node) -> tuple[int, int] | None:
    """Return the strides; None if a Slice does anything but take every s-th row and column."""
    parts = [graph.constant(value) for value in node.inputs[1:]]
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


def _added_channels(graph: Graph, node: ir.Node | None) -> tuple[int, int] | None:
    """Return how many zero channels a Pad adds before and after; None if it does anything else."""
    if not is_operator(node, "Pad"):
        return None
    pads = graph.constant(argument(node, 1))
    if pads is None or pads.size != 8 or attributes(node).get("mode", "constant") != "constant":
        return None
    number = argument(node, 2)
    if (number is not None and graph.scalar(number) != 0) or argument(node, 3) is not None:
        return None
    others = [p for place, p in enumerate(pads) if place % 4 != _CHANNELS]
    before, behind = int(pads[_CHANNELS]), int(pads[4 + _CHANNELS])
    return (before, behind) if not any(others) and min(before, behind) >= 0 else None
