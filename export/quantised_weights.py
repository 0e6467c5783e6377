"""The weights that a file holds in 8 bits, under the names that they have in float."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.patterns.other_quantised import weight_inputs

SUFFIX = "_quantized"
"""What ONNX Runtime's quantiser puts behind the name of a weight."""
_IN_8_BITS = (ir.DataType.INT8, ir.DataType.UINT8)


def quantised_weights(model: ir.Model) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each weight's name and its steps from zero: 0 where it stands for 0.

    Once for each operator that reads it, which gives it its zero point.
    """
    for name, value in model.graph.initializers.items():
        if not name.endswith(SUFFIX) or value.dtype not in _IN_8_BITS:
            continue
        steps = value.const_value.numpy().astype(np.int16)
        for node, place in value.uses():
            zero_point = _zero_point(node, place)
            if zero_point is not None:
                yield float_name(name), steps - _along(zero_point, _axis(node, steps), steps)


def float_name(name: str) -> str:
    """Name of a weight in the float file.

    >>> float_name("head.weight_quantized")
    'head.weight'
    """
    return name.removesuffix(SUFFIX)


def _zero_point(node: ir.Node, place: int) -> np.ndarray | None:
    """Zero points of a weight, int16; None if the node does not read it as one."""
    if node.op_type == "DequantizeLinear" and place == 0:
        source = 2
    else:
        given = weight_inputs(node)
        if given is None or given.weight != place or given.packed:
            return None
        source = given.zero_point
    value = node.inputs[source] if source is not None and source < len(node.inputs) else None
    if value is None:
        return np.zeros(1, np.int16)
    return None if value.const_value is None else value.const_value.numpy().astype(np.int16)


def _axis(node: ir.Node, weight: np.ndarray) -> int:
    """Axis of the outputs."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type == "DequantizeLinear":
        return given.get("axis", 1)
    return 0 if "Conv" in node.op_type or given.get("transB") else weight.ndim - 1


def _along(values: np.ndarray, axis: int, weight: np.ndarray) -> np.ndarray:
    if values.size == 1:
        return values.reshape(())
    shape = [1] * weight.ndim
    shape[axis] = values.size
    return values.reshape(shape)
