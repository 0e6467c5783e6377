"""Compare attention with the nodes that it replaces, on random numbers.

The outputs of a whole model in 8 bits would hide a wrong factor or mask: rounding alone moves them
by percents.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from mfac_compress.export.sparse.attention import Attention, attention_node
from mfac_compress.export.sparse.attention_traces import Layouts
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.measure import open_model
from mfac_compress.export.sparse.nodes import DOMAIN, VERSION
from mfac_compress.export.sparse.probe import Feeds, shapes_of

_MAX_DIFFERENCE = 1e-4  # relative to the largest
_OPSET = 17


def exact_attention(
    graph: Graph, found: Iterable[Attention], feeds: Feeds, seconds: float | None = None
) -> list[Attention]:
    """Return those attentions whose operator computes what their nodes do.

    Args:
        graph: The graph in which they were found.
        found: Attention in it.
        feeds: Inputs on which the model runs, for the shapes.
        seconds: Time limit of a run of the model; None for no limit.
    """
    found = list(found)
    names = {name for each in found for name in each.inputs}
    shapes = shapes_of(graph.model, names, feeds, seconds)
    rng = np.random.default_rng(0)

    def is_exact(each: Attention) -> bool:
        given = {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in each.inputs}
        (dense,) = Layouts(graph.model, list(given), [each.y]).run(given, feeds)
        try:
            (ours,) = _alone(each).run(None, given)
        except (Fail, InvalidArgument, RuntimeException):
            return False
        if ours.size != dense.size:
            return False
        largest = np.abs(dense).max(initial=0.0)
        return bool(np.all(np.abs(ours.reshape(dense.shape) - dense) <= _MAX_DIFFERENCE * largest))

    return [each for each in found if is_exact(each)]


def _alone(each: Attention) -> onnxruntime.InferenceSession:
    """Open a session of the operator alone."""
    values = {name: ir.val(name, ir.DataType.FLOAT) for name in each.inputs}
    node = attention_node(each, [values[name] for name in each.inputs])
    node.outputs[0].dtype = ir.DataType.FLOAT
    alone = ir.Graph(
        list(values.values()),
        node.outputs,
        nodes=[node],
        opset_imports={"": _OPSET, DOMAIN: VERSION},
        name="attention",
    )
    return open_model(ir.Model(alone, ir_version=9), 1)
