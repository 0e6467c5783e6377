"""The operator of one layer's node, before fusion."""

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.nodes import Window
from mfac_compress.export.sparse.operator import SparseOperator


def layer_operator(
    node: ir.Node,
    weight: np.ndarray,
    *,
    window: Window | None = None,
    bias: np.ndarray | None = None,
) -> SparseOperator:
    """Build y = x ∘ W + bias for a node whose first input is x and whose second is the weight.

    Args:
        node: The node.
        weight: As :class:`SparseOperator` takes it, in any memory order.
        window: Convolution window; None for matmul.
        bias: As :class:`SparseOperator` takes it.
    """
    return SparseOperator(
        name=node.name,
        weight_name=node.inputs[1].name,
        nodes=(node,),
        x=node.inputs[0],
        weight=np.ascontiguousarray(weight),
        window=window,
        bias=bias,
    )
