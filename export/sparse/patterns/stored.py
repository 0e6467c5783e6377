"""The weight that a layer's node reads, as the file stores it."""

from dataclasses import dataclass

import numpy as np
import onnx

from mfac_compress.export.sparse.graph import Graph, attributes
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


def stored_weight(graph: Graph, node: onnx.NodeProto) -> StoredWeight | None:
    """Return the weight of a Conv, Gemm, MatMul or their quantised forms; None if not constant.

    Args:
        graph: The graph of the node.
        node: A node of the main graph.
    """
    inputs = weight_inputs(node)
    if inputs is not None:
        return _of_other(graph, node, inputs)
    name = node.input[0 if has_left_weight(graph, node) else 1]
    position = dequantised_constant(graph, name)
    if position is None:
        array = graph.constant(name)
        return None if array is None else StoredWeight(graph.stored(name), array)
    source = graph.nodes[position]
    given = attributes(source)
    return _centred(
        graph, source.input[0], source.input[2:3], given.get("axis", 1), given.get("block_size", 0)
    )


def _of_other(graph: Graph, node: onnx.NodeProto, inputs: WeightInputs) -> StoredWeight | None:
    name = node.input[inputs.weight]
    if graph.constant(name) is None:
        return None
    if inputs.packed:
        return StoredWeight(name, None)
    if inputs.zero_point is None:
        return StoredWeight(graph.stored(name), graph.constant(name))
    outputs_first = "Conv" in node.op_type or attributes(node).get("transB", 0)
    zero_point = node.input[inputs.zero_point : inputs.zero_point + 1]
    return _centred(graph, name, zero_point, 0 if outputs_first else -1)


def _centred(
    graph: Graph, name: str, zero_points: list[str], axis: int, block_size: int = 0
) -> StoredWeight:
    """Return the weight less its zero point: one number, one per index of an axis, or per block.

    Args:
        graph: The graph of the values.
        name: Name of the weight.
        zero_points: Name of the zero point; empty, or an empty name, if there is none.
        axis: Axis of the zero points or blocks; a negative one counts from the end.
        block_size: Length of a block along the axis; 0 without blocks.
    """
    array, stored = graph.constant(name), graph.stored(name)
    if array.dtype.kind not in "iu":
        return StoredWeight(stored, None)
    if not any(zero_points):
        return StoredWeight(stored, array)
    zero_point = graph.constant(zero_points[0])
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
