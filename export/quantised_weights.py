"""The weights that a file holds in 8 bits, under the names that they have in float."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.patterns.other_quantised import weight_inputs

SUFFIX = "_quantized"
"""What ONNX Runtime's quantiser puts behind the name of a weight."""
_SCALE = "_scale"
"""And behind that of its scale."""
_IN_8_BITS = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True, eq=False)
class SignedWeight:
    """A weight in signed 8 bits whose step 0 stands for 0.

    Args:
        steps: int8, in the shape of the weight.
        scale: What a step stands for. Float32, ``[1]`` or one for each output.
    """

    steps: np.ndarray
    scale: np.ndarray


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


def signed_weights(path: Path) -> dict[str, SignedWeight]:
    """Read the signed and symmetric weights of a file, by their names in the float file."""
    model = ir.load(path)
    values, found = model.graph.initializers, {}
    symmetric = {
        name: (steps == values[name + SUFFIX].const_value.numpy()).all()
        for name, steps in quantised_weights(model)
        if values[name + SUFFIX].dtype == ir.DataType.INT8
    }
    for name, is_symmetric in symmetric.items():
        scale = values.get(name + _SCALE)
        if is_symmetric and scale is not None:
            steps = values[name + SUFFIX].const_value.numpy()
            found[name] = SignedWeight(steps, scale.const_value.numpy().reshape(-1))
    return found


def replace_steps(model: ir.Model, steps: Mapping[str, np.ndarray]) -> None:
    """Give weights in 8 bits other steps; those that the model has in float stay as they are.

    Args:
        model: Changed.
        steps: By the weight's name in the float file. int8, in the weight's shape.
    """
    for name, array in steps.items():
        value = model.graph.initializers.get(name + SUFFIX)
        if value is not None:
            value.const_value = ir.tensor(array, name=value.name)


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


def output_axis(node: ir.Node, axes: int) -> int:
    """Axis of the outputs in the weight of a layer, which has so many axes."""
    turned = "transB" in node.attributes and node.attributes["transB"].value
    return 0 if "Conv" in node.op_type or turned else axes - 1


def _axis(node: ir.Node, weight: np.ndarray) -> int:
    """Axis of the scales."""
    if node.op_type != "DequantizeLinear":
        return output_axis(node, weight.ndim)
    return node.attributes["axis"].value if "axis" in node.attributes else 1


def _along(values: np.ndarray, axis: int, weight: np.ndarray) -> np.ndarray:
    if values.size == 1:
        return values.reshape(())
    shape = [1] * weight.ndim
    shape[axis] = values.size
    return values.reshape(shape)
