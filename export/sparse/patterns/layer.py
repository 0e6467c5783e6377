"""The operator of one layer's node, before fusion."""

import numpy as np

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import SparseOperator, Window


def layer_operator(
    graph: Graph,
    position: int,
    weight: np.ndarray,
    *,
    window: Window | None = None,
    bias: np.ndarray | None = None,
) -> SparseOperator:
    """Build y = x ∘ W + bias for a node whose first input is x and whose second is the weight.

    Args:
        graph: The graph of the node.
        position: Position of the node.
        weight: As :class:`SparseOperator` takes it, in any memory order.
        window: Convolution window; None for matmul.
        bias: As :class:`SparseOperator` takes it.
    """
    node = graph.nodes[position]
    return SparseOperator(
        name=node.name,
        weight_name=node.input[1],
        nodes=(position,),
        x=node.input[0],
        y=node.output[0],
        weight=np.ascontiguousarray(weight),
        window=window,
        bias=bias,
    )
