"""Keep ONNX Runtime from fusing a sum with the layer norm after it, which is slower on CPUs.

    LayerNormalization(Add(a, b)) -> LayerNormalization(Sum(a, b))

ONNX Runtime turns the first form into SkipLayerNormalization, whose CPU kernel is slower than the
two operators; it has no fusion for the second, which computes the same. Session options could
disable the fusion as well, but every program that opens the file would have to set them.
"""

import onnx_ir as ir

from mfac_compress.export.sparse.graph import is_operator


def prevent_skip_layer_norm(model: ir.Model) -> int:
    """Turn the Adds before layer norms into Sums.

    Args:
        model: Changed in place.
    Returns:
        The number of nodes changed.
    """
    sums = {
        node.inputs[0].producer()
        for node in model.graph
        if is_operator(node, "LayerNormalization") and node.inputs[0] is not None
    }
    adds = [node for node in sums if is_operator(node, "Add")]
    for node in adds:
        node.op_type = "Sum"
    return len(adds)
