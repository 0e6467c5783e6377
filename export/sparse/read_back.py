"""Read the weights of sparse operators back from a file, as the file it was made from has them."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.nodes import DOMAIN

_LAYERS = ("Conv", "Gemm", "MatMul")
"""Their second input is the weight. Operators that only copy values have none."""


def packed_weights(model: ir.Model, source: ir.Model | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weight of each sparse operator in float32, unpacked.

    Args:
        model: Written by :func:`rewrite`; each sparse operator has the name of the layer for which
            it stands.
        source: The model that it was made from; None if it is not known.
    Yields:
        The weight's name in the source and the weight in the source's orientation; the operator's
        name and ``[outputs, inputs, ...]`` if the source has no layer of that name.
    """
    layers = {node.name: node for node in source.graph if node.name} if source else {}
    for node in model.graph:
        if node.domain != DOMAIN or node.op_type not in ("SparseLinear", "SparseConv"):
            continue
        weight, layer = _unpacked(node), layers.get(node.name)
        if layer is None or layer.op_type not in _LAYERS or layer.inputs[1] is None:
            yield node.name, weight
        else:
            yield layer.inputs[1].name, weight.T if _is_transposed(layer) else weight


def _unpacked(node: ir.Node) -> np.ndarray:
    """Return the dense weight of an operator; the format is that of :mod:`format`."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type == "SparseLinear":
        shape, group = (given["out_features"], given["in_features"]), 1
    else:
        group = given["group"]
        shape = (given["out_channels"], given["in_channels"] // group, *given["kernel_shape"])
    values, indices, starts = (value.const_value.numpy() for value in node.inputs[1:4])
    blocks = np.zeros((len(starts) - 1, given["block"], int(np.prod(shape[1:]))), np.float32)
    rows = np.repeat(np.arange(len(blocks)), np.diff(starts))
    blocks[rows, :, indices] = values
    outputs = shape[0] // group
    return blocks.reshape(group, -1, blocks.shape[2])[:, :outputs].reshape(shape)


def _is_transposed(layer: ir.Node) -> bool:
    """Whether a layer's weight is stored as ``[inputs, outputs]``."""
    if layer.op_type == "Gemm":
        return not ("transB" in layer.attributes and layer.attributes["transB"].value)
    return layer.op_type == "MatMul"
