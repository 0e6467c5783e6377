"""Fold constants node by node in ONNX Runtime, bit-identical to what it computes from the same
nodes when it loads the file.
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

_ELEMENTWISE = {
    "Abs", "Add", "Cast", "Clip", "Div", "Exp", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sign",
    "Sqrt", "Sub", "Sum", "Tanh", "Where",
}  # fmt: skip
FOLDED = frozenset(_ELEMENTWISE) | {
    "Concat", "DequantizeLinear", "Flatten", "Gather", "Identity", "QuantizeLinear", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reshape", "Shape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that ONNX Runtime folds as well, with outputs no larger than their inputs except by
broadcasting. Not those that make large outputs from small inputs (ConstantOfShape, Expand, Tile),
nor random ones."""
MAX_ELEMENTS = 2**29
"""Limit for one value; protobuf is limited to 2 GiB."""


def fold(
    node: onnx.NodeProto, constants: Mapping[str, TensorProto], model: onnx.ModelProto
) -> Sequence[np.ndarray] | None:
    """Compute a node whose inputs are constants.

    Args:
        node: Its operator is in ``FOLDED``.
        constants: Its inputs by name.
        model: The model of the node, for its opsets and version of the format.
    Returns:
        Its outputs; None if they are too large, or of a type that NumPy lacks.
    """
    if _max_elements(node, constants) > MAX_ELEMENTS:
        return None
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name]
    alone = onnx.ModelProto(ir_version=max(4, model.ir_version))
    alone.opset_import.extend(model.opset_import)
    alone.graph.CopyFrom(helper.make_graph([node], "constants", [], outputs))
    for name, tensor in constants.items():
        alone.graph.initializer.add().CopyFrom(tensor)
        alone.graph.initializer[-1].name = name
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            alone.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, {})
    except Exception:  # a type that NumPy lacks, or an invalid node: not a constant
        return None


def _max_elements(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> int:
    """Return a bound on the total size of the outputs, before they are computed."""
    shapes = [tuple(constants[name].dims) for name in node.input if name]
    if node.op_type == "Gather":
        return prod(map(prod, shapes))
    if node.op_type in _ELEMENTWISE:
        try:
            return prod(np.broadcast_shapes(*shapes))
        except ValueError:
            return 0
    return sum(map(prod, shapes))
