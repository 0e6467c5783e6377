"""How many multiplications a layer takes, in theory: what counting FLOPs would promise."""

from collections.abc import Mapping
from math import prod

import numpy as np

from mfac_compress.export.sparse.find import Layer
from mfac_compress.export.sparse.graph import Graph


def multiplications(
    graph: Graph, layer: Layer, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int] | None:
    """Count a layer's multiplications in one call: all, and those by weights that are not zero.

    Args:
        graph: Where it stands.
        layer: A Conv, Gemm or MatMul of the main graph.
        shapes: Of its input and output.
    Returns:
        None where a shape is not known.
    """
    node = layer.node
    x, y = (shapes.get(name) for name in (node.input[0], node.output[0]))
    if not x or not y:
        return None
    weight = graph.constant(node.input[1])
    if weight is None:
        count = prod(y) * x[-1]  # of two activations
        return count, count
    # Each weight meets every position of the output once: pixels of images, else rows.
    positions = y[0] * prod(y[2:]) if node.op_type == "Conv" else prod(y[:-1])
    return positions * weight.size, positions * int(np.count_nonzero(weight))
