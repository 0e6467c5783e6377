"""BatchNormalization after a convolution: y = s ∘ (conv(x, W) + b − mean) + shift.

W ← s W, b ← s (b − mean) + shift, with s = scale / √(variance + ε) for each output
"""

from dataclasses import replace

import numpy as np

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import SparseOperator


def fold_batchnorm(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the batch norm after it folded in; None if there is none."""
    position = graph.only_user(operator.y)
    if not operator.window or operator.residual or not operator.can_fuse:
        return None
    if not graph.is_operator(position, "BatchNormalization"):
        return None
    node = graph.nodes[position]
    given = attributes(node)
    constants = [graph.constant(name) for name in node.input[1:5]]
    if len(node.output) > 1 or given.get("training_mode", 0) or any(c is None for c in constants):
        return None
    scale, shift, mean, variance = (c.astype(np.float64) for c in constants)
    factor = scale / np.sqrt(variance + given.get("epsilon", 1e-5))
    bias = np.zeros_like(shift) if operator.bias is None else operator.bias.astype(np.float64)
    bias = (factor * (bias - mean) + shift).astype(np.float32)
    of_outputs = factor.reshape(-1, *[1] * (operator.weight.ndim - 1))
    weight = (operator.weight * of_outputs).astype(np.float32)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return None
    nodes = (*operator.nodes, position)
    return replace(operator, nodes=nodes, y=node.output[0], weight=weight, bias=bias)
