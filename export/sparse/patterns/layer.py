"""The operator of one layer's node, with nothing fused yet."""

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
    """y = x ∘ W + bias of a node whose first input is x and whose second is the weight.

    Args:
        graph: Where it stands.
        position: Of the node.
        weight: As the operator takes it, in any memory order.
        window: Of a convolution.
        bias: As the operator takes it.
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
