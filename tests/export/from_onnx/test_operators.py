"""The converted operators against the cases that ONNX itself has for them."""

import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from mfac_compress.export.from_onnx import convert
from mfac_compress.export.from_onnx.registry import OPERATORS

FEWEST = 520
"""Cases that must come out right: fewer would mean that operators are refused that were not."""
OTHERS = {
    # ONNX Runtime rounds the output's length first, as this does, and the reference does not.
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
    # In training mode.
    "test_training_dropout",
    "test_training_dropout_default",
}


def _cases() -> Iterator[tuple[str, onnx.ModelProto, list, list]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own arithmetic overflows
        found = collect_testcases(None)
    for case in found:
        kinds = {node.op_type for node in case.model.graph.node}
        inputs, outputs = case.data_sets[0]
        plain = all(
            isinstance(x, np.ndarray) and x.dtype.kind in "fib" for x in (*inputs, *outputs)
        )
        known = kinds <= {*OPERATORS, "Constant"} and case.name not in OTHERS
        # Those that are "expanded" are the same by simpler operators.
        if known and plain and "_expanded" not in case.name:
            yield case.name, case.model, inputs, outputs


def _converted(model: onnx.ModelProto, inputs: list) -> tuple[torch.nn.Module, dict]:
    """The module of a case, in which all inputs but tensors of floats are constants."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    given = {}
    for place, (value, x) in enumerate(zip([*model.graph.input], inputs, strict=False)):
        if place == 0 or (x.dtype == np.float32 and x.size > 8 and x.ndim):
            given[value.name] = torch.from_numpy(np.array(x))
            for axis in value.type.tensor_type.shape.dim:
                axis.dim_param = "open"
        else:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(x), value.name))
            model.graph.input.remove(value)
    names = [tensor.name for tensor in model.graph.initializer]
    return convert(ir.from_proto(model), writable=names).module, given


@torch.no_grad()
def test_operators_compute_what_onnx_says():
    right, wrong = 0, []
    for name, model, inputs, outputs in _cases():
        try:
            module, given = _converted(model, inputs)
            found = module(**given)
        except ValueError:  # refused, with its name
            continue
        for got, wanted in zip(
            found.values() if isinstance(found, dict) else [found], outputs, strict=False
        ):
            same_kind = tuple(got.shape) == wanted.shape and got.numpy().dtype == wanted.dtype
            close = same_kind and np.allclose(
                got.double().numpy(), wanted.astype(np.float64), 2e-3, 1e-5, equal_nan=True
            )
            if not close:
                wrong.append(name)
        right += 1
    assert not wrong
    assert right >= FEWEST


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("MaxPool<kernel_shape=[2]>", "indices"),
        ("Dropout", "mask"),
        ("LayerNormalization", "mean"),
    ],
)
def test_outputs_that_are_not_computed_are_refused_only_where_they_are_read(node, reason):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 2, 8] x) => (float[N, 2, 8] y{more}) <float[8] w = {{1,1,1,1,1,1,1,1}}>
    {{ y, z = {node} (x{w}) }}"""
    weight = ", w" if node.startswith("Layer") else ""
    model = ir.from_proto(onnx.parser.parse_model(text.format(more="", node=node, w=weight)))
    convert(model, writable=[])
    read = text.format(more=", float[N, 2, 8] z", node=node, w=weight)
    with pytest.raises(ValueError, match=reason):
        convert(ir.from_proto(onnx.parser.parse_model(read)), writable=[])
