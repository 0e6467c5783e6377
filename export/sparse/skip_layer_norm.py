"""Keep ONNX Runtime from fusing a sum with the layer norm after it, which is slower on CPUs.

    LayerNormalization(Add(a, b)) -> LayerNormalization(Sum(a, b))

ONNX Runtime turns the first form into SkipLayerNormalization, whose CPU kernel is slower than the
two operators; it has no fusion for the second, which computes the same. Session options could
disable the fusion as well, but every program that opens the file would have to set them.
"""

import onnx

from mfac_compress.export.sparse.graph import Graph


def prevent_skip_layer_norm(model: onnx.ModelProto) -> int:
    """Turn the Adds before layer norms into Sums.

    Args:
        model: Changed in place.
    Returns:
        The number of nodes changed.
    """
    graph = Graph(model)
    changed = 0
    for position, node in enumerate(graph.nodes):
        if graph.is_operator(position, "LayerNormalization"):
            before = graph.producer(node.input[0])
            if graph.is_operator(before, "Add"):
                graph.nodes[before].op_type = "Sum"
                changed += 1
    return changed
