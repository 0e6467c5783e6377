"""BatchNormalization after a convolution: y = s ∘ (conv(x, W) + b − mean) + shift.

W ← s W, b ← s (b − mean) + shift, with s = scale / √(variance + ε) for each output
"""

from dataclasses import replace

import numpy as np

from mfac_compress.export.sparse.graph import Graph, attributes, is_operator, only_user
from mfac_compress.export.sparse.operator import SparseOperator


def fold_batchnorm(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the batch norm after it folded in; None if there is none."""
    node = only_user(operator.y)
    if not operator.window or operator.residual or not is_operator(node, "BatchNormalization"):
        return None
    given = attributes(node)
    constants = [graph.constant(value) for value in node.inputs[1:5]]
    if len(node.outputs) > 1 or given.get("training_mode", 0) or any(c is None for c in constants):
        return None
    scale, shift, mean, variance = (c.astype(np.float64) for c in constants)
    factor = scale / np.sqrt(variance + given.get("epsilon", 1e-5))
    bias = np.zeros_like(shift) if operator.bias is None else operator.bias.astype(np.float64)
    bias = (factor * (bias - mean) + shift).astype(np.float32)
    of_outputs = factor.reshape(-1, *[1] * (operator.weight.ndim - 1))
    weight = (operator.weight * of_outputs).astype(np.float32)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return None
    return replace(operator, nodes=(*operator.nodes, node), weight=weight, bias=bias)
