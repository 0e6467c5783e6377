"""A layer between DequantizeLinear and QuantizeLinear, as in a QDQ file:

    q(y) = QuantizeLinear(activation(layer(DequantizeLinear(x), DequantizeLinear(W)) + bias))

with x and y uint8, W int8 and symmetric (zero point 0), and no activation, Relu or Clip. A matrix
product whose result is not quantised at once goes on in floats:

    z = activation(layer(DequantizeLinear(x), DequantizeLinear(W)) + bias + residual)

and perhaps q(y) = QuantizeLinear(z), which other patterns add.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, is_operator, only_user
from mfac_compress.export.sparse.nodes import LARGEST_SCALE, Rounding, Scaling, Window
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.activation import bounds
from mfac_compress.export.sparse.patterns.dequantised import (
    Quantised,
    dequantised,
    quantised,
    unless_bytes,
)
from mfac_compress.export.sparse.patterns.weight import constant_bias, is_bounded

_SAME = 1e-4  # relative difference of scales that ONNX Runtime's quantiser may cause


@dataclass(frozen=True)
class _Weight:
    source: Quantised
    array: np.ndarray
    """int8, outputs first."""
    scales: np.ndarray
    """float32, ``[outputs]``."""


@dataclass(frozen=True)
class _End:
    """What follows the sums of a layer.

    Attributes:
        nodes: The layer's node, and those that compute its end.
        epilogue: What they compute.
        bias: As :class:`SparseOperator` takes it.
    """

    nodes: tuple[ir.Node, ...]
    epilogue: Rounding | Scaling
    bias: np.ndarray | None


def quantised_operator(
    graph: Graph, node: ir.Node, *, output_axis: int, window: Window | None = None
) -> SparseOperator | Unsupported:
    """Return the operator of a layer with a quantised weight, or why there is none.

    Args:
        graph: The graph of the layer.
        node: A node whose inputs are x, a weight dequantised from a constant, and perhaps a bias.
        output_axis: Axis of the outputs in the weight.
        window: Convolution window; None for matmul.
    """
    x = _input(graph, node.inputs[0])
    axes = 2 + (len(window.strides) if window else 0)
    weight = _weight(graph, node.inputs[1], axes, output_axis)
    for found in (x, weight):
        if isinstance(found, Unsupported):
            return found
    in_floats = window is None and not _is_rounded(node)
    end = _floats(graph, node, x, weight) if in_floats else _bytes(graph, node, x, weight)
    if isinstance(end, Unsupported):
        return end
    integers = end.bias if isinstance(end.epilogue, Rounding) else None
    if _may_leave_32_bits(weight.array, end.epilogue.x_zero_point, integers):
        return Unsupported("its sums may overflow 32 bits")
    bias = argument(node, 2)
    sources = {x.node, weight.source.node, None if bias is None else bias.producer()}
    return SparseOperator(
        name=node.name,
        weight_name=weight.source.value.name,
        nodes=end.nodes,
        feeding=tuple(sources - {None}),
        x=x.value,
        weight=weight.array,
        epilogue=end.epilogue,
        window=window,
        bias=end.bias,
    )


def _bytes(graph: Graph, node: ir.Node, x: Quantised, weight: _Weight) -> _End | Unsupported:
    """Return what follows the sums of a layer whose output is quantised."""
    ends = quantised_end(graph, node)
    if isinstance(ends, Unsupported):
        return ends
    nodes, output, limits = ends
    rounding = _rounding(x, weight, output, limits)
    if not np.isfinite(rounding.scales).all():
        return Unsupported(
            "the scales of its input and weight are too large for that of its output"
        )
    given, bias = argument(node, 2), None
    if given is not None:
        bias = _bias(graph, given, x.scale.reshape(()) * weight.scales)
        if isinstance(bias, Unsupported):
            return bias
    return _End(nodes, rounding, bias)


def _floats(graph: Graph, node: ir.Node, x: Quantised, weight: _Weight) -> _End | Unsupported:
    """Return what follows the sums of a matrix product that goes on in floats."""
    with np.errstate(over="ignore"):
        scales = np.float32(x.scale.reshape(-1)[0]) * weight.scales
    if not (scales <= LARGEST_SCALE).all():
        return Unsupported("the scales of its input and weight are too large for float32")
    given, bias = argument(node, 2), None
    if given is not None:
        bias = constant_bias(graph, given, len(weight.array))
        if bias is None or not is_bounded(bias):
            return Unsupported("its bias is not constant and finite, with one number per output")
    return _End((node,), Scaling(scales, int(x.zero_point.reshape(-1)[0])), bias)


def _is_rounded(node: ir.Node) -> bool:
    """Whether a layer's output is quantised at once, or after an activation of one node."""
    user = only_user(node.outputs[0])
    if is_operator(user, "Relu", "Clip"):
        user = only_user(user.outputs[0])
    return user is not None and user.op_type == "QuantizeLinear"


def _input(graph: Graph, value: ir.Value) -> Quantised | Unsupported:
    x = dequantised(graph, value, "its weight is quantised, but its input")
    if isinstance(x, Unsupported):
        return x
    return unless_bytes(x, "its input", "take") or x


def _weight(graph: Graph, value: ir.Value, axes: int, output_axis: int) -> _Weight | Unsupported:
    source = dequantised(graph, value, "its weight")
    if isinstance(source, Unsupported):
        return source
    array = graph.constant(source.value)
    if array.dtype != np.int8:
        return Unsupported(
            f"its weight is {array.dtype}, and the kernels take int8 (QuantType.QInt8)"
        )
    if array.ndim != axes or array.size == 0:
        return Unsupported(f"its weight has shape {list(array.shape)}, and {axes} axes are needed")
    if source.zero_point is not None and source.zero_point.any():
        return Unsupported("its weight has a zero point that is not 0: quantise it symmetrically")
    outputs = array.shape[output_axis]
    if source.scale.size != 1 and source.axis != output_axis:
        return Unsupported(
            "its weight has one scale for each input, and the kernels take one per output"
        )
    scales = np.ascontiguousarray(np.broadcast_to(source.scale.reshape(-1), (outputs,)))
    return _Weight(source, np.ascontiguousarray(np.moveaxis(array, output_axis, 0)), scales)


def _bias(graph: Graph, value: ir.Value, scales: np.ndarray) -> np.ndarray | Unsupported:
    """Return the int32 bias, in steps of the sums, or why there is none."""
    source = dequantised(graph, value, "its bias")
    if isinstance(source, Unsupported):
        return source
    array = graph.constant(source.value)
    if array is None or array.dtype != np.int32 or array.shape != scales.shape:
        return Unsupported("its bias is not a constant int32 with one number per output")
    if source.zero_point is not None and source.zero_point.any():
        return Unsupported("its bias has a zero point that is not 0")
    if not np.allclose(source.scale, scales, rtol=_SAME, atol=0):
        return Unsupported(
            "the scale of its bias is not that of its input times that of its weight"
        )
    return array


def _may_leave_32_bits(weight: np.ndarray, x_zero_point: int, bias: np.ndarray | None) -> bool:
    """Whether bias + Σ (x − x_zero_point) w, or a partial sum, could overflow int32 for some bytes.

    The kernels start with the terms that do not depend on x, and refuse a file in which adding the
    products with bytes could overflow int32. ONNX Runtime's own sums wrap around, or are floats.
    """
    rows = weight.reshape(len(weight), -1)
    begin = -x_zero_point * rows.sum(axis=1, dtype=np.int64)
    if bias is not None:
        begin += bias
    # Partial sums are also added separately.
    highest = np.maximum(begin, 0) + 255 * rows.sum(axis=1, dtype=np.int64, where=rows > 0)
    lowest = np.minimum(begin, 0) + 255 * rows.sum(axis=1, dtype=np.int64, where=rows < 0)
    return max(highest.max(), -lowest.min()) > np.iinfo(np.int32).max


def quantised_end(
    graph: Graph, node: ir.Node
) -> tuple[tuple[ir.Node, ...], Quantised, tuple[float, float]] | Unsupported:
    """Return a node with those up to the QuantizeLinear after it, what that one makes, and the
    bounds of an activation between them; or why there are none."""
    nodes, limits = [node], (-np.inf, np.inf)
    user = only_user(node.outputs[0])
    if is_operator(user, "Relu", "Clip"):
        found = bounds(graph, user)
        if found is None:
            return Unsupported("the bounds of the Clip after it are not constant, or not in order")
        limits = found
        nodes.append(user)
        user = only_user(user.outputs[0])
    output = quantised(graph, user, "its output")
    if isinstance(output, Unsupported):
        return output
    refusal = unless_bytes(output, "its output", "make")
    if refusal is not None:
        return refusal
    return (*nodes, user), output, limits


def _rounding(
    x: Quantised, weight: _Weight, output: Quantised, limits: tuple[float, float]
) -> Rounding:
    """Compute in float32 and in ONNX Runtime's order, so that ties are rounded the same way."""
    y_scale = np.float32(output.scale.reshape(-1)[0])
    with np.errstate(over="ignore"):  # scales that are checked later
        scales = np.float32(x.scale.reshape(-1)[0]) * weight.scales / y_scale
    zero_points = (int(each.zero_point.reshape(-1)[0]) for each in (x, output))
    return Rounding(scales.astype(np.float32), *zero_points, *byte_limits(output, limits))


def byte_limits(output: Quantised, limits: tuple[float, float]) -> tuple[int, int]:
    """Return the bounds of an activation as bytes of the output after it."""
    scale = np.float32(output.scale.reshape(-1)[0])
    zero_point = int(output.zero_point.reshape(-1)[0])
    with np.errstate(over="ignore"):  # infinite bounds
        low, high = (np.rint(np.float32(limit) / scale) + zero_point for limit in limits)
    return int(np.clip(low, 0, 255)), int(np.clip(high, 0, 255))
