"""Read the weights of sparse operators back from a file, as the file it was made from has them."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mfac_compress.export.sparse.format import PackedWeight, unpack
from mfac_compress.export.sparse.nodes import DOMAIN


def packed_weights(
    model: onnx.ModelProto, source: onnx.ModelProto | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weight of each sparse operator in float32, unpacked.

    Args:
        model: Written by :func:`rewrite`; each sparse operator has the name of the layer for which
            it stands.
        source: The model that it was made from; None if it is not known.
    Yields:
        The weight's name in the source and the weight in the source's orientation; the operator's
        name and ``[outputs, inputs, ...]`` if the source has no layer of that name.
    """
    layers = {node.name: node for node in source.graph.node if node.name} if source else {}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type not in ("SparseLinear", "SparseConv"):
            continue
        weight = unpack(_packed(node, tensors))
        layer = layers.get(node.name)
        if layer is None:
            yield node.name, weight
        else:
            yield layer.input[1], weight.T if _is_transposed(layer) else weight


def _packed(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> PackedWeight:
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "SparseLinear":
        shape, group = (given["out_features"], given["in_features"]), 1
    else:
        group = given["group"]
        shape = (given["out_channels"], given["in_channels"] // group, *given["kernel_shape"])
    values, indices, starts = (numpy_helper.to_array(tensors[n]) for n in node.input[1:4])
    return PackedWeight(values, indices, starts, given["block"], shape, group)


def _is_transposed(layer: onnx.NodeProto) -> bool:
    """Whether a layer's weight is stored as ``[inputs, outputs]``."""
    if layer.op_type == "Gemm":
        return not any(each.name == "transB" and each.i for each in layer.attribute)
    return layer.op_type == "MatMul"
