"""Convolutions along one axis are computed as images of one row, and equal ONNX Runtime's."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mfac_compress.export import Workload, measure_speed
from mfac_compress.export.sparse.format import pack
from mfac_compress.export.sparse.nodes import Window, sparse_node

X = {"x": ["n", 8, 45]}


def _ones(*shape):
    return lambda workload: {"x": np.ones((workload.batch_size, *shape), np.float32)}


@pytest.mark.parametrize("block", [1, 4, 8, 16])
@pytest.mark.parametrize(
    ("attributes", "group", "kernel"),
    [
        ({}, 1, 1),
        ({}, 1, 3),
        ({"pads": [1, 1]}, 1, 3),
        ({"pads": [0, 4], "strides": [2]}, 1, 5),
        ({"pads": [6, 0], "dilations": [3]}, 1, 3),
        ({"pads": [8, 8], "dilations": [4], "strides": [3]}, 2, 5),
        ({"strides": [5]}, 1, 1),
        ({"pads": [3, 3]}, 8, 7),
        ({"auto_pad": "SAME_UPPER"}, 1, 4),
        ({"auto_pad": "SAME_LOWER"}, 2, 6),
        ({"auto_pad": "VALID"}, 1, 4),
    ],
)
def test_a_convolution(rewritten, make_model, sparse_weight, block, attributes, group, kernel):
    nodes = [("Conv", ["x", "w", "b"], ["y"], attributes | {"group": group})]
    weight = sparse_weight(16, 8 // group, kernel, kept=0.4)
    bias = np.arange(16, dtype=np.float32)
    assert rewritten(make_model(nodes, X, ["y"], w=weight, b=bias), block).kinds == ["SparseConv"]


@pytest.mark.parametrize("length", [1, 8, 16, 32, 33, 1000])
def test_chains_are_computed_without_anything_between(rewritten, make_model, sparse_weight, length):
    """Batch norm, residual and activation as for images, and planes of one row."""
    pads = {"pads": [1, 1]}
    nodes = [
        ("Conv", ["x", "w0"], ["a"], pads),
        ("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"]),
        ("Relu", ["n"], ["r"]),
        ("Conv", ["r", "w1"], ["c"], pads),
        ("Relu", ["c"], ["d"]),
        ("Conv", ["d", "w2"], ["e"], pads),
        ("Add", ["e", "r"], ["f"]),
        ("Clip", ["f", "low", "high"], ["y"]),
    ]
    constants = {f"w{n}": sparse_weight(8, 8, 3, seed=n) for n in range(3)}
    constants |= {name: np.linspace(0.5, 1.5, 8, dtype=np.float32) for name in "gbmv"}
    constants |= {"low": np.float32(-0.2), "high": np.float32(0.9)}
    found = rewritten(make_model(nodes, {"x": ["n", 8, length]}, ["y"], **constants))
    assert found.kinds == ["SparseConv"] * 3
    layouts = [(a["input_layout"], a["output_layout"]) for a in found.attributes]
    assert layouts == [(b"nchw", b"planes"), (b"planes", b"planes"), (b"planes", b"nchw")]


def test_values_that_are_not_finite(rewritten, make_model, sparse_weight, kernels):
    weight = sparse_weight(4, 8, 3)
    weight[0, 0] = 0
    model = make_model([("Conv", ["x", "w"], ["y"], {"pads": [1, 1]})], X, ["y"], w=weight)
    found = rewritten(model).model
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(kernels))
    x = np.ones((1, 8, 45), np.float32)
    x[0, 0, 7] = np.nan
    y = onnxruntime.InferenceSession(found.SerializeToString(), options).run(None, {"x": x})[0]
    assert np.isnan(y[0, :, 6:9]).all()
    assert np.isfinite(y[0, :, [*range(6), *range(9, 45)]]).all()


@pytest.mark.parametrize("attributes", [{}, {"pads": [2, 1], "strides": [2], "group": 2}])
def test_a_quantised_convolution(replaced, make_model, attributes):
    rng = np.random.default_rng(0)
    group = attributes.get("group", 1)
    nodes = [
        ("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        ("DequantizeLinear", ["xq", "xs", "xz"], ["x'"]),
        ("DequantizeLinear", ["w", "ws"], ["w'"]),
        ("Conv", ["x'", "w'"], ["c"], attributes),
        ("QuantizeLinear", ["c", "ys", "xz"], ["yq"]),
        ("DequantizeLinear", ["yq", "ys", "xz"], ["y"]),
    ]
    weight = rng.integers(-99, 99, (6, 8 // group, 3)) * (rng.random((6, 8 // group, 3)) < 0.3)
    model = make_model(
        nodes, X, ["y"], w=weight.astype(np.int8), ws=np.float32(0.02), xs=np.float32(0.05),
        xz=np.uint8(100), ys=np.float32(0.11),
    )  # fmt: skip
    kinds, operators = replaced(model, {"x": rng.standard_normal((3, 8, 45), dtype=np.float32)})
    assert "SparseQConv" in kinds
    assert operators[0].weight.shape == (6, 8 // group, 3)


def test_multiplications_are_those_of_images_of_one_row(make_model, sparse_weight, tmp_path):
    weight = sparse_weight(4, 8, 3)
    model = make_model([("Conv", ["x", "w"], ["y"], {"strides": [2]})], X, ["y"], w=weight)
    onnx.save(model, tmp_path / "model.onnx")
    (layer,) = measure_speed(
        tmp_path / "model.onnx", _ones(8, 45), [Workload(3, 1)],
        kernels=False,
    ).layers  # fmt: skip
    assert (layer.macs, layer.kept_macs) == (3 * 22 * 96, 3 * 22 * np.count_nonzero(weight))


@pytest.mark.parametrize(
    "window", [{"strides": (1, 1)}, {"pads": (0, 0, 0, 0)}, {"dilations": (1, 1)}]
)
def test_numbers_for_two_axes_are_refused(sparse_weight, window):
    one = {"strides": (1,), "pads": (0, 0), "dilations": (1,)}
    packed = pack(sparse_weight(4, 8, 3))
    x = ir.Value(name="x")
    assert sparse_node("c", x, "y", packed, window=Window(**one))
    with pytest.raises(ValueError, match="must be for 1 axes"):
        sparse_node("c", x, "y", packed, window=Window(**one | window))


def test_a_window_of_one_axis_takes_nothing_else(kernels, sparse_weight):
    """The kernels check the attributes of the nodes."""
    window = Window((1,), (0, 0), (1,))
    node = sparse_node("c", ir.Value(name="x"), "y", pack(sparse_weight(4, 8, 3)), window=window)
    constants = [ir.to_proto(each.const_value) for each in node.inputs[1:4]]
    infos = [onnx.helper.make_tensor_value_info(n, 1, None) for n in "xy"]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "g", infos[:1], infos[1:], constants)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("mfac_compress", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernels))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    assert session.run(None, {"x": np.ones((2, 8, 9), np.float32)})[0].shape == (2, 4, 7)
    for shape in ((2, 8, 1, 9), (8, 9), (2, 7, 9), (2, 8, 2)):
        with pytest.raises(Exception, match=r"X must be \[N, C, W\]|padded input"):
            session.run(None, {"x": np.ones(shape, np.float32)})
    wrong = onnx.ModelProto.FromString(model.SerializeToString())
    next(a for a in wrong.graph.node[0].attribute if a.name == "pads").ints.extend([0, 0])
    with pytest.raises(Exception, match="pads must have 2 numbers"):
        onnxruntime.InferenceSession(wrong.SerializeToString(), options)
