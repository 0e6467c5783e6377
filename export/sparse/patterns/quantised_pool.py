"""The largest bytes of a quantised convolution's result, in a QDQ file:

    q(y) = QuantizeLinear(MaxPool(DequantizeLinear(t)))

with t the bytes that the convolution makes, of the scale and zero point of q(y).
"""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, attributes, only_user
from mfac_compress.export.sparse.nodes import MaxPool
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.dequantised import (
    Quantised,
    dequantised,
    only_use_of_bytes,
    quantised,
    unless_bytes,
)


def add_max_pool(
    graph: Graph, operator: SparseOperator, shapes: Mapping[str, tuple[int, ...]]
) -> SparseOperator | None:
    """Return the operator with the MaxPool after it; None if there is none that fits.

    Args:
        graph: The graph of the operator.
        operator: The operator to extend.
        shapes: As for :func:`add_residual`.
    """
    use = only_use_of_bytes(operator.y, "MaxPool")
    if use is None or not operator.can_have_more:
        return None
    own, node = use
    pool = _pool(node)
    start = dequantised(graph, own.outputs[0], "its input")
    end = quantised(graph, only_user(node.outputs[0]), "its output")
    if pool is None or not _same_steps(start, end):
        return None
    if not _is_inside(pool, shapes.get(own.outputs[0].name, ())):
        return None
    epilogue = replace(operator.epilogue, then=pool)
    return replace(operator, nodes=(*operator.nodes, own, node, end.node), epilogue=epilogue)


def _pool(node: ir.Node) -> MaxPool | None:
    given = attributes(node)
    kernel = tuple(given["kernel_shape"])
    pads, strides, dilations = (
        tuple(given.get(key) or [default] * number * len(kernel))
        for key, default, number in (("pads", 0, 2), ("strides", 1, 1), ("dilations", 1, 1))
    )
    plain = given.get("auto_pad", "NOTSET") == "NOTSET" and not given.get("ceil_mode", 0)
    if len(kernel) != 2 or not plain or set(dilations) != {1} or len(node.outputs) != 1:
        return None
    if any(pad >= size for pad, size in zip(pads, kernel * 2, strict=True)):
        return None
    return MaxPool(kernel, strides, pads)


def _is_inside(pool: MaxPool, shape: tuple[int, ...]) -> bool:
    """Whether a window fits into the padded image; ONNX Runtime also pools smaller ones."""
    padded = (size + sum(pool.pads[axis::2]) for axis, size in enumerate(shape[2:]))
    return len(shape) == 4 and all(n >= k for n, k in zip(padded, pool.kernel, strict=True))


def _same_steps(start: Quantised | Unsupported, end: Quantised | Unsupported) -> bool:
    """Whether the largest number before is the largest byte after."""
    if isinstance(start, Unsupported) or isinstance(end, Unsupported):
        return False
    if unless_bytes(start, "", "") or unless_bytes(end, "", ""):
        return False
    return bool(start.scale == end.scale and start.zero_point == end.zero_point)
