"""The number of multiply-accumulates (MACs) of a layer, in theory."""

from collections.abc import Mapping
from math import prod

import numpy as np

from mfac_compress.export.sparse.find import Layer
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.patterns.matmul import has_left_weight
from mfac_compress.export.sparse.patterns.stored import stored_weight


def count_macs(
    graph: Graph, layer: Layer, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int] | None:
    """Count a layer's multiply-accumulates in one call: all, and those with nonzero weights.

    Args:
        graph: The graph of the layer.
        layer: A layer of the main graph.
        shapes: Shapes of its input and output.
    Returns:
        Both counts. None if a shape or the weight's values are not known, and for the product of
        two constants, which is not computed in a call.
    """
    node = layer.node
    stored = stored_weight(graph, node)
    if stored is not None and stored.array is None:
        return None
    if has_left_weight(graph, node):
        return _of_left_weight(stored.array, shapes.get(node.outputs[0].name))
    x, y = (shapes.get(value.name) for value in (node.inputs[0], node.outputs[0]))
    if not x or not y:
        return None
    is_convolution = "Conv" in node.op_type  # ConvTranspose and ConvInteger, too
    if stored is None:
        count = prod(y) * x[-1]  # a product of two activations
        return None if is_convolution else (count, count)
    # Each weight is used once for every position (pixel or row) of the output, or of the input if
    # the convolution is transposed.
    images = x if node.op_type == "ConvTranspose" else y
    positions = images[0] * prod(images[2:]) if is_convolution else prod(y[:-1])
    return positions * stored.array.size, positions * int(np.count_nonzero(stored.array))


def _of_left_weight(weight: np.ndarray, y: tuple[int, ...] | None) -> tuple[int, int] | None:
    if not y or not weight.size:
        return None
    each = prod(y) * weight.shape[-1] // weight.size  # multiplications by one weight
    return each * weight.size, each * int(np.count_nonzero(weight))
