"""Conv: y = conv(x, W) + bias on images or along one axis, with W and bias constant."""

from typing import Any

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, attributes
from mfac_compress.export.sparse.nodes import Window
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.layer import layer_operator
from mfac_compress.export.sparse.patterns.weight import constant_bias, constant_weight

AXES = (3, 4)
"""Numbers of axes of a convolution's weight: outputs, inputs, and one or two of its window."""
_LARGEST = 2**15
"""Largest attribute that the kernels accept."""


def match_conv(graph: Graph, node: ir.Node) -> SparseOperator | Unsupported:
    """Return the operator of a Conv node, or why there is none."""
    weight = constant_weight(graph, node.inputs[1], *AXES)
    if isinstance(weight, Unsupported):
        return weight
    window = constant_window(attributes(node), weight.shape[2:])
    if isinstance(window, Unsupported):
        return window
    given = argument(node, 2)
    bias = constant_bias(graph, given, len(weight))
    if given is not None and bias is None:
        return Unsupported("its bias is not constant")
    return layer_operator(node, weight, window=window, bias=bias)


def constant_window(given: dict[str, Any], kernel: tuple[int, ...]) -> Window | Unsupported:
    """Return a Conv's window, unless its padding depends on the input's height and width.

    Args:
        given: The node's attributes.
        kernel: Height and width of the weight, or only its width.
    """
    ones = (1,) * len(kernel)
    strides = tuple(given.get("strides", ones))
    dilations = tuple(given.get("dilations", ones))
    pads = tuple(given.get("pads", (0, 0) * len(kernel)))
    automatic = given.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        pads = (0, 0) * len(kernel)
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        if strides != ones:
            return Unsupported(f"its padding ({automatic}) depends on the input's size")
        extra = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
        small, large = [each // 2 for each in extra], [each - each // 2 for each in extra]
        pads = (*small, *large) if automatic == "SAME_UPPER" else (*large, *small)
    if max(*kernel, *strides, *dilations, *pads) > _LARGEST or min(pads) < 0:
        return Unsupported(
            f"the kernels take kernel_shape, strides, dilations and pads of at most {_LARGEST:,}, "
            "and pads that are not negative"
        )
    return Window(strides, pads, dilations, given.get("group", 1))
