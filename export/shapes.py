"""Shapes of the values in a graph whose file does not say them."""

import onnx
import onnx_ir as ir


def with_shapes(model: ir.Model) -> ir.Model:
    """Infer the shapes of a graph's values, where there is one without.

    Args:
        model: Not changed.
    Returns:
        The model, or a copy with what could be inferred.
    """
    if all(value.shape is not None for node in model.graph for value in node.outputs if value.name):
        return model
    try:
        return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    except Exception:  # larger than protobuf allows, or not valid: shapes stay unknown
        return model
