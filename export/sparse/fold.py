"""Fold constants node by node in ONNX Runtime, bit-identical to what it computes from the same
nodes when it loads the file.
"""

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx_ir as ir
import onnxruntime

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
    node: ir.Node, constants: Mapping[ir.Value, ir.TensorProtocol], model: ir.Model
) -> Mapping[ir.Value, ir.TensorProtocol] | None:
    """Compute a node whose inputs are constants.

    Args:
        node: Its operator is in ``FOLDED``.
        constants: Its inputs.
        model: The model of the node, for its opsets and version of the format.
    Returns:
        Its outputs; None if they are too large, or of a type that NumPy lacks.
    """
    if _max_elements(node, constants) > MAX_ELEMENTS:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            ir.to_proto(_alone(node, constants, model)).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        arrays = session.run(None, {})
        named = (value for value in node.outputs if value.name)
        return {value: ir.tensor(array) for value, array in zip(named, arrays, strict=True)}
    except Exception:  # a type that NumPy lacks, or an invalid node: not a constant
        return None


def _alone(
    node: ir.Node, constants: Mapping[ir.Value, ir.TensorProtocol], model: ir.Model
) -> ir.Model:
    """Return a model of one node, whose inputs are initializers."""
    view = ir.GraphView(
        [],
        [value for value in node.outputs if value.name],
        nodes=[node],
        initializers=list(constants),
        opset_imports=model.opset_imports,
        name="constants",
    )
    graph = view.clone()
    for value, tensor in constants.items():
        graph.initializers[value.name].const_value = tensor
    for value in graph.outputs:
        value.type = value.shape = None  # the file may be wrong about them
    return ir.Model(graph, ir_version=max(4, model.ir_version))


def _max_elements(node: ir.Node, constants: Mapping[ir.Value, ir.TensorProtocol]) -> int:
    """Return a bound on the total size of the outputs, before they are computed."""
    shapes = [tuple(constants[value].shape) for value in node.inputs if value is not None]
    if node.op_type == "Gather":
        return prod(map(prod, shapes))
    if node.op_type in _ELEMENTWISE:
        try:
            return prod(np.broadcast_shapes(*shapes))
        except ValueError:
            return 0
    return sum(map(prod, shapes))
