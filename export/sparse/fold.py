"""Compute what follows from constants alone, node by node, in ONNX Runtime: to the bit what it
makes of the same nodes when it loads the file.
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
"""What ONNX Runtime folds as well, with outputs no larger than what they are made of, but for
broadcasting. Not what makes much of little (ConstantOfShape, Expand, Tile), nor anything random."""
MOST_ELEMENTS = 2**29
"""Of a value; protobuf ends at 2 GiB."""


def fold(
    node: onnx.NodeProto, constants: Mapping[str, TensorProto], model: onnx.ModelProto
) -> Sequence[np.ndarray] | None:
    """Compute a node of constants.

    Args:
        node: Of a kind in ``FOLDED``.
        constants: Of the names that it reads.
        model: From which it is: its opsets and version of the format count.
    Returns:
        Its outputs; None where they are too large, or of a type that NumPy lacks.
    """
    if _most_elements(node, constants) > MOST_ELEMENTS:
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
    except Exception:  # a type that NumPy lacks, or a node that is wrong: no constant, then
        return None


def _most_elements(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> int:
    """How large the outputs could be together, before they are made."""
    shapes = [tuple(constants[name].dims) for name in node.input if name]
    if node.op_type == "Gather":
        return prod(map(prod, shapes))
    if node.op_type in _ELEMENTWISE:
        try:
            return prod(np.broadcast_shapes(*shapes))
        except ValueError:
            return 0
    return sum(map(prod, shapes))
