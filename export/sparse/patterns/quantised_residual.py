"""The sum of a quantised convolution's result and other bytes, in a QDQ file:

    q(y) = QuantizeLinear(activation(DequantizeLinear(t) + DequantizeLinear(residual)))

with t the bytes that the convolution makes, and no activation, Relu or Clip.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, is_elementwise
from mfac_compress.export.sparse.nodes import Addition
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.dequantised import (
    Quantised,
    dequantised,
    only_use_of_bytes,
    unless_bytes,
)
from mfac_compress.export.sparse.patterns.quantised_layer import byte_limits, quantised_end

_LARGEST_FACTOR = 2**15 - 1
_LEAST_SHIFT, _LARGEST_SHIFT = 10, 22
"""With a smaller shift, of terms many times larger than their sum, two factors that are rounded to
integers could change the sum by more than a quarter of a step."""
_MOST_TIES = 1 / 128
"""Share of sums halfway between two steps: the kernels round them up, ONNX Runtime to even. Scales
that are powers of two have many."""


def add_quantised_residual(
    graph: Graph, operator: SparseOperator, shapes: Mapping[str, tuple[int, ...]]
) -> SparseOperator | None:
    """Return the operator with a residual of bytes; None if there is none that fits.

    Args:
        graph: The graph of the operator.
        operator: The operator to extend.
        shapes: As for :func:`add_residual`.
    """
    use = only_use_of_bytes(operator.y, "Add")
    if use is None or not operator.can_have_more:
        return None
    own, node = use
    terms = _terms(graph, node, own.outputs[0], shapes)
    end = quantised_end(graph, node)
    if terms is None or isinstance(end, Unsupported):
        return None
    nodes, output, limits = end
    addition = _addition(*terms, output, limits)
    residual = terms[1]
    return addition and replace(
        operator,
        nodes=(*operator.nodes, own, *nodes),
        feeding=tuple({*operator.feeding, residual.node}),
        residual=residual.value,
        epilogue=replace(operator.epilogue, then=addition),
    )


def _terms(
    graph: Graph, node: ir.Node, own: ir.Value, shapes: Mapping[str, tuple[int, ...]]
) -> list[Quantised] | None:
    """Return the terms of a sum, ``own`` first; None if they are not bytes of one shape."""
    residual = node.inputs[1] if node.inputs[0] is own else node.inputs[0]
    terms = [dequantised(graph, value, "a term") for value in (own, residual)]
    if not is_elementwise(node, shapes):
        return None
    if any(isinstance(each, Unsupported) or unless_bytes(each, "", "") for each in terms):
        return None
    return terms if graph.constant(terms[1].value) is None else None


def _addition(
    own: Quantised, residual: Quantised, output: Quantised, limits: tuple[float, float]
) -> Addition | None:
    """Return the addition with as many bits as the kernels take.

    None if a scale is too large, or too many sums would be rounded in another way.
    """
    scales = [float(_number(each.scale)) / float(_number(output.scale)) for each in (own, residual)]
    shift = min(_LARGEST_SHIFT, math.floor(math.log2(_LARGEST_FACTOR / max(scales))))
    if shift < _LEAST_SHIFT:
        return None
    factors = [round(scale * 2**shift) for scale in scales]
    fractions = 2**shift // math.gcd(*factors, 2**shift)  # of a step, that sums have
    if fractions > 1 and 1 / fractions > _MOST_TIES:
        return None
    zero_points = [int(_number(each.zero_point)) for each in (own, residual, output)]
    offset = zero_points[2] * 2**shift - np.dot(factors, zero_points[:2]) + 2**shift // 2
    return Addition(*factors, int(offset), shift, *byte_limits(output, limits))


def _number(array: np.ndarray) -> np.generic:
    return array.reshape(-1)[0]
