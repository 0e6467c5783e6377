"""Keep ONNX Runtime from fusing a sum with the layer norm behind it, which is slower on CPUs.

    LayerNormalization(Add(a, b)) -> LayerNormalization(Sum(a, b))

ONNX Runtime makes SkipLayerNormalization of the first form, whose CPU kernel takes longer than the
two operators do; it knows no fusion of the second, which computes the same. Session options could
turn the fusion off as well, but every program that opens the file would have to set them.
"""

import onnx

from mfac_compress.export.sparse.graph import Graph


def keep_sums_apart(model: onnx.ModelProto) -> int:
    """Turn the Adds before layer norms into Sums.

    Args:
        model: Changed in place.
    Returns:
        How many.
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
