"""Read the weights of sparse operators back from a file, as the file it was made from has them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from mfac_compress.export.quantised_weights import float_name
from mfac_compress.export.sparse.nodes import DOMAIN

_LAYERS = ("Conv", "Gemm", "MatMul")
"""Their second input is the weight. Operators that only copy values have none."""
_SPARSE = (
    "SparseLinear", "SparseConv", "SparseQLinear", "SparseQLinearToFloat", "SparseQLinearViaFloat",
    "SparseQConv", "SparseQConvAdd", "SparseQConvMaxPool", "SparseConvDepthwise",
)  # fmt: skip


def packed_weights(model: ir.Model, source: ir.Model | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weight of each sparse operator, unpacked: float32, or int8 of a quantised one.

    Args:
        model: Written by :func:`rewrite`; each sparse operator has the name of the layer for which
            it stands, or the names of several as an attribute.
        source: The model that it was made from; None if it is not known.
    Yields:
        The weight's name in the source and the weight in the source's orientation; the operator's
        name and ``[outputs, inputs, ...]`` if the source has no layer of that name.
    """
    layers = {node.name: node for node in source.graph if node.name} if source else {}
    for node in model.graph:
        if node.domain != DOMAIN or node.op_type not in _SPARSE:
            continue
        for name, weight in _weights(node):
            layer = layers.get(name)
            if layer is None or layer.op_type not in _LAYERS or layer.inputs[1] is None:
                yield name, weight
            else:
                yield _weight_name(layer.inputs[1]), weight.T if _is_transposed(layer) else weight


def _weights(node: ir.Node) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights of a node, each with the name of its layer."""
    weight = _unpacked(node)
    if "stacked_names" in node.attributes:
        names, outputs = (node.attributes[f"stacked_{key}"].value for key in ("names", "outputs"))
        yield from zip(names, np.split(weight, np.cumsum(outputs)[:-1]), strict=True)
        return
    yield node.name, weight
    if node.op_type == "SparseConvDepthwise":
        yield node.attributes["depthwise_name"].value, node.inputs[5].const_value.numpy()


def _weight_name(weight: ir.Value) -> str:
    """Name of a layer's weight in the file in float."""
    source = weight.producer()
    if source is None or source.op_type != "DequantizeLinear":
        return weight.name
    return float_name(source.inputs[0].name)


def _shape(given: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    """Shape of the dense weight, and number of groups."""
    if "out_features" in given:
        return (given["out_features"], given["in_features"]), 1
    group = given["group"]
    return (given["out_channels"], given["in_channels"] // group, *given["kernel_shape"]), group


def _unpacked(node: ir.Node) -> np.ndarray:
    """Return the dense weight of an operator; its format is one of :mod:`format`."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    values, indices, starts = (value.const_value.numpy() for value in node.inputs[1:4])
    rows, (shape, group) = np.repeat(np.arange(len(starts) - 1), np.diff(starts)), _shape(given)
    if "block" not in given:
        return _from_quads(values, indices, rows, shape)
    blocks = np.zeros((len(starts) - 1, given["block"], int(np.prod(shape[1:]))), values.dtype)
    blocks[rows, :, indices] = values
    outputs = shape[0] // group
    return blocks.reshape(group, -1, blocks.shape[2])[:, :outputs].reshape(shape)


def _from_quads(
    values: np.ndarray, indices: np.ndarray, rows: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    outputs, inputs = shape[:2]
    quads, window = -(-inputs // 4), int(np.prod(shape[2:]))
    blocks = np.zeros((outputs, quads * window, 4), values.dtype)
    blocks[rows, indices] = values
    channels = blocks.reshape(outputs, quads, window, 4).transpose(0, 1, 3, 2)
    return channels.reshape(outputs, quads * 4, window)[:, :inputs].reshape(shape)


def _is_transposed(layer: ir.Node) -> bool:
    """Whether a layer's weight is stored as ``[inputs, outputs]``."""
    if layer.op_type == "Gemm":
        return not ("transB" in layer.attributes and layer.attributes["transB"].value)
    return layer.op_type == "MatMul"
