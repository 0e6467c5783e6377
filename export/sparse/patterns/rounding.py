"""q(y) = QuantizeLinear(z): the floats that a quantised matrix product makes, as bytes again."""

from dataclasses import replace

from mfac_compress.export.sparse.graph import Graph, only_user
from mfac_compress.export.sparse.nodes import Scaling
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.dequantised import quantised, unless_bytes


def add_rounding(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the QuantizeLinear after it; None if there is none that fits."""
    scaled = isinstance(operator.epilogue, Scaling)
    if not scaled or operator.epilogue.output or operator.residual:
        return None
    output = quantised(graph, only_user(operator.y), "its output")
    if isinstance(output, Unsupported) or unless_bytes(output, "its output", "make"):
        return None
    scale, zero_point = (float(part.reshape(-1)[0]) for part in (output.scale, output.zero_point))
    epilogue = replace(operator.epilogue, output=(scale, int(zero_point)))
    return replace(operator, nodes=(*operator.nodes, output.node), epilogue=epilogue)
