"""The weight that a layer's node reads, as the file stores it."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, attributes
from mfac_compress.export.sparse.patterns.dequantised import dequantised_constant
from mfac_compress.export.sparse.patterns.matmul import has_left_weight
from mfac_compress.export.sparse.patterns.other_quantised import WeightInputs, weight_inputs


@dataclass(frozen=True)
class StoredWeight:
    """A constant weight.

    Attributes:
        name: Name of the tensor in the file.
        array: The weight less its zero point, so that zero weights are 0. None if its numbers are
            packed or of an unsupported type, so that its zeros are not known.
    """

    name: str
    array: np.ndarray | None


def stored_weight(graph: Graph, node: ir.Node) -> StoredWeight | None:
    """Return the weight of a Conv, Gemm, MatMul or their quantised forms; None if not constant.

    Args:
        graph: The graph of the node.
        node: A node of the main graph.
    """
    inputs = weight_inputs(node)
    if inputs is not None:
        return _of_other(graph, node, inputs)
    value = node.inputs[0 if has_left_weight(graph, node) else 1]
    source = dequantised_constant(graph, value)
    if source is None:
        array = graph.constant(value)
        return None if array is None else StoredWeight(graph.stored(value), array)
    given = attributes(source)
    axis, block_size = given.get("axis", 1), given.get("block_size", 0)
    return _centred(graph, source.inputs[0], argument(source, 2), axis, block_size)


def _of_other(graph: Graph, node: ir.Node, inputs: WeightInputs) -> StoredWeight | None:
    value = argument(node, inputs.weight)
    array = graph.constant(value)
    if array is None:
        return None
    if inputs.packed:
        return StoredWeight(value.name, None)
    if inputs.zero_point is None:
        return StoredWeight(graph.stored(value), array)
    outputs_first = "Conv" in node.op_type or attributes(node).get("transB", 0)
    return _centred(graph, value, argument(node, inputs.zero_point), 0 if outputs_first else -1)


def _centred(
    graph: Graph, value: ir.Value, zero_points: ir.Value | None, axis: int, block_size: int = 0
) -> StoredWeight:
    """Return the weight less its zero point: one number, one per index of an axis, or per block.

    Args:
        graph: The graph of the values.
        value: The weight.
        zero_points: None if there are none.
        axis: Axis of the zero points or blocks; a negative one counts from the end.
        block_size: Length of a block along the axis; 0 without blocks.
    """
    array, stored = graph.constant(value), graph.stored(value)
    if array.dtype.kind not in "iu":
        return StoredWeight(stored, None)
    if zero_points is None:
        return StoredWeight(stored, array)
    zero_point = graph.constant(zero_points)
    if zero_point is None:
        return StoredWeight(stored, None)
    zero_point = zero_point.astype(np.int64)
    if block_size:
        whole = np.repeat(zero_point, block_size, axis)  # the last block may be shorter
        zero_point = np.take(whole, range(array.shape[axis]), axis)
    elif zero_point.size == 1:
        zero_point = zero_point.reshape(())
    elif zero_point.ndim == 1:
        others = [a for a in range(array.ndim) if a != axis % array.ndim]
        zero_point = np.expand_dims(zero_point, others)
    return StoredWeight(stored, array.astype(np.int64) - zero_point)
