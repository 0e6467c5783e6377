"""Layers of QDQ files become sparse operators that compute what the file says, or have a reason."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from torch import nn

from mfac_compress.export import Setting, export_onnx, measure_speed
from mfac_compress.export.sparse import choose, whole
from mfac_compress.export.sparse.compose import name_nodes, rewrite
from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.find import find_layers, fuse
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Placement, chains
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.export.sparse.operator import Refusal
from mfac_compress.export.sparse.quantised_operator import QuantisedOperator

X_SCALE, W_SCALE, Y_SCALE = np.float32(0.05), np.float32(0.02), np.float32(0.11)


def _qdq(
    make_model,
    weight,
    *,
    layer="Gemm",
    attributes=None,
    bias=True,
    behind=(),
    shape=("n", 12),
    **new,
):
    """A layer between DequantizeLinear and QuantizeLinear; constants may be others."""
    transposed = layer == "Gemm" and (attributes or {}).get("transB")
    outputs = weight.shape[0] if layer == "Conv" or transposed else weight.shape[1]
    constants = {
        "xs": X_SCALE, "xz": np.uint8(100), "w": weight, "ws": W_SCALE, "wz": np.int8(0),
        "b": np.arange(outputs, dtype=np.int32) * 40, "bs": X_SCALE * W_SCALE,
        "ys": Y_SCALE, "yz": np.uint8(90),
    } | new  # fmt: skip
    axis = {} if np.ndim(constants["ws"]) == 0 else {"axis": new.pop("axis", 0)}
    constants.pop("axis", None)
    read = ["x'", "w'", "b'"] if bias and layer != "MatMul" else ["x'", "w'"]
    nodes = [
        ("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        ("DequantizeLinear", ["xq", "xs", "xz"], ["x'"]),
        ("DequantizeLinear", ["w", "ws", "wz"], ["w'"], axis),
        ("DequantizeLinear", ["b", "bs"], ["b'"], {"axis": 0} if np.ndim(constants["bs"]) else {}),
        (layer, read, ["m0"], attributes or {}),
        *((kind, [f"m{n}", *rest], [f"m{n + 1}"]) for n, (kind, *rest) in enumerate(behind)),
        ("QuantizeLinear", [f"m{len(behind)}", "ys", "yz"], ["yq"]),
        ("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    return make_model(nodes, {"x": list(shape)}, ["y"], **constants)


def _weight(*shape, kept=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(-127, 128, shape) * (rng.random(shape) < kept)).astype(np.int8)


@pytest.fixture
def replaced(kernels):
    """Compute all that sparse operators can, and hold the outputs to what the file says.

    ONNX Runtime computes it in float32 if it optimises nothing: only ties may round otherwise.
    """

    def check(model, inputs, steps=1):
        graph = Graph(model)
        operators = [o for o in fuse(graph, find_layers(graph), {}) if o.element_type == 2]
        sparse = rewrite(graph, {operator: Placement(1) for operator in operators})
        onnx.checker.check_model(sparse)
        plain, ours = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        ours.register_custom_ops_library(str(kernels))
        expected = onnxruntime.InferenceSession(model.SerializeToString(), plain).run(None, inputs)
        found = onnxruntime.InferenceSession(sparse.SerializeToString(), ours).run(None, inputs)
        scale = next(
            graph.scalar(node.input[1]) for node in graph.nodes if node.output[0] in graph.outputs
        )
        for a, b in zip(found, expected, strict=True):
            differences = np.rint(np.abs(a - b) / scale)
            assert differences.max() <= steps
            assert (differences > 0).mean() < 0.02
        return [node.op_type for node in sparse.graph.node], operators

    return check


def _feed(*shape):
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 3}


FROM_X = ["QuantizeLinear"]
TO_Y = ["DequantizeLinear"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm(replaced, make_model, transposed, channels, bias):
    weight = _weight(6, 12) if transposed else _weight(12, 6)
    new = {}
    if channels:
        scales = np.linspace(0.01, 0.04, 6, dtype=np.float32)
        new = {"ws": scales, "wz": np.zeros(6, np.int8), "bs": X_SCALE * scales}
        new |= {"axis": 0 if transposed else 1}
    model = _qdq(make_model, weight, attributes={"transB": transposed}, bias=bias, **new)
    kinds, operators = replaced(model, _feed(5, 12))
    assert kinds == [*FROM_X, "SparseQLinear", *TO_Y]
    assert operators[0].sparsity == 1 - np.count_nonzero(weight) / weight.size
    assert operators[0].weight_name == "w"


@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 1, 3)])
def test_matmul(replaced, make_model, leading):
    model = _qdq(make_model, _weight(12, 6), layer="MatMul", shape=(*leading, 12))
    assert replaced(model, _feed(*leading, 12))[0] == [*FROM_X, "SparseQLinear", *TO_Y]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [0, 1, 2, 0]},
        {"dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER"},
        {"group": 2},
    ],
)
def test_conv(replaced, make_model, attributes):
    weight = _weight(6, 8 // attributes.get("group", 1), 3, 3)
    model = _qdq(make_model, weight, layer="Conv", attributes=attributes, shape=(2, 8, 9, 7))
    assert replaced(model, _feed(2, 8, 9, 7))[0] == [*FROM_X, "SparseQConv", *TO_Y]


@pytest.mark.parametrize(
    ("behind", "constants"),
    [
        ([("Relu",)], {}),
        ([("Clip", "low", "high")], {"low": np.float32(-2), "high": np.float32(6)}),
        ([("Clip", "", "high")], {"high": np.float32(6)}),
    ],
)
def test_activations_are_bounds_of_the_bytes(replaced, make_model, behind, constants):
    model = _qdq(make_model, _weight(12, 6), behind=behind, **constants)
    kinds, operators = replaced(model, _feed(40, 12))
    assert kinds == [*FROM_X, "SparseQLinear", *TO_Y]
    rounding = operators[0].rounding
    assert (rounding.low, rounding.high) != (0, 255)


def _reason(model, place=0):
    found = find_layers(Graph(model))[place].found
    assert isinstance(found, Refusal)
    return found.reason


S8 = {"xz": np.int8(3)}
REFUSALS = {
    "int8, and the kernels take uint8": {"xz": np.int8(3)},
    "zero point that is not 0": {"wz": np.int8(3)},
    "its weight is uint8": {"w": np.ones((12, 6), np.uint8), "wz": np.uint8(0)},
    "its output is int8": {"yz": np.int8(0)},
    "the scale of its bias": {"bs": np.float32(1)},
    "one scale for each input": {"ws": np.full(12, W_SCALE), "wz": np.zeros(12, np.int8)},
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_does_not_fit_has_a_reason(make_model, reason):
    assert reason in _reason(_qdq(make_model, _weight(12, 6), **REFUSALS[reason]))


@pytest.mark.parametrize(
    ("attributes", "reason"), [({"alpha": 0.5}, "alpha"), ({"transA": 1}, "transA")]
)
def test_a_gemm_that_is_more_than_a_product_has_a_reason(make_model, attributes, reason):
    assert reason in _reason(_qdq(make_model, _weight(12, 6), attributes=attributes))


def test_a_convolution_whose_padding_depends_on_the_size_has_a_reason(make_model):
    attributes = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    model = _qdq(make_model, _weight(6, 8, 3, 3), layer="Conv", attributes=attributes,
                 shape=(2, 8, 9, 7))  # fmt: skip
    assert "SAME_UPPER" in _reason(model)


def test_a_layer_whose_output_is_not_quantised_has_a_reason(make_model):
    model = _qdq(make_model, _weight(12, 6), behind=[("Sigmoid",)])
    assert "not quantised" in _reason(model)


def test_a_layer_whose_output_others_read_as_floats_has_a_reason(make_model):
    model = _qdq(make_model, _weight(12, 6))
    model.graph.output.append(onnx.helper.make_tensor_value_info("m0", 1, None))
    assert "not quantised" in _reason(model)


def test_a_layer_whose_input_is_not_quantised_has_a_reason(make_model):
    model = _qdq(make_model, _weight(12, 6))
    next(node for node in model.graph.node if node.op_type == "Gemm").input[0] = "x"
    assert "its input is not" in _reason(model)


def test_a_dequantised_value_that_others_read_stays(replaced, make_model):
    model = _qdq(make_model, _weight(12, 6))
    model.graph.node.append(onnx.helper.make_node("Relu", ["x'"], ["z"], "relu"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["n", 12]))
    assert "DequantizeLinear" in replaced(model, _feed(5, 12))[0][:-1]


class _Reader(CalibrationDataReader):
    def __init__(self, shape):
        rng = np.random.default_rng(0)
        self.batches = iter([rng.standard_normal(shape).astype(np.float32) for _ in range(3)])

    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def _cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU6(),
        nn.Conv2d(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def _mlp():
    return nn.Sequential(
        nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 7)
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Float files of a CNN and an MLP with pruned weights."""

    def export(build, shape):
        torch.manual_seed(0)
        model = build().eval()
        for layer in model:
            if hasattr(layer, "weight"):
                layer.weight.data *= torch.rand_like(layer.weight) < 0.2
        path = tmp_path_factory.mktemp("float") / "model.onnx"
        export_onnx(model, torch.randn(shape), path)
        return path

    return {"cnn": (export(_cnn, (2, 3, 12, 12)), (2, 3, 12, 12)),
            "mlp": (export(_mlp, (2, 20)), (2, 20))}  # fmt: skip


def _quantised(exported, name, tmp_path, **options):
    path, shape = exported[name]
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8} | options
    options = {"quant_format": QuantFormat.QDQ} | options
    quantize_static(path, tmp_path / "q.onnx", _Reader(shape), **options)
    return tmp_path / "q.onnx", shape


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [("cnn", ["SparseQConv"] * 3 + ["SparseQLinear"]), ("mlp", ["SparseQLinear"] * 3)],
)
def test_files_that_onnx_runtime_quantised(replaced, exported, name, kinds, per_channel, tmp_path):
    path, shape = _quantised(exported, name, tmp_path, per_channel=per_channel)
    model = read_model(path)
    name_nodes(model)
    found, operators = replaced(model, {"input": _feed(*shape)["x"]}, steps=3)
    assert [kind for kind in found if kind.startswith("Sparse")] == kinds
    graph = Graph(model)
    lengths = [len(chain) for chain in chains(graph, operators)]
    assert lengths == ([3, 1] if name == "cnn" else [1, 1, 1])


def _times(monkeypatch, kernels):
    """Files with sparse operators take half as long as those without."""
    del kernels

    def race(models, feeds, *, threads, rounds):
        sparse = [any(node.domain == DOMAIN for node in model.graph.node) for model in models]
        return [[1.0 if each else 2.0] * 3 for each in sparse]

    monkeypatch.setattr(choose, "race", race)
    monkeypatch.setattr(whole, "race", race)


def test_the_report_counts_the_zeros_of_quantised_weights(exported, tmp_path, monkeypatch, kernels):
    path, shape = _quantised(exported, "cnn", tmp_path, per_channel=True)
    _times(monkeypatch, kernels)
    found = measure_speed(path, lambda n: {"input": _feed(n, *shape[1:])["x"]}, [Setting(2, 1)])
    assert [layer.block for layer in found.layers] == [4, 4, 4, 4]
    assert found.layers[1].shape == (16, 8, 3, 3)
    assert found.layers[1].sparsity == pytest.approx(0.8, abs=0.05)
    assert found.layers[1].macs == 2 * 6 * 6 * 16 * 8 * 9
    kept = round(found.layers[1].macs * (1 - found.layers[1].sparsity))
    assert found.layers[1].kept_macs == kept
    assert found.difference < 0.05
    assert found.reason == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation_type": QuantType.QInt8}, "int8, and the kernels take uint8"),
        ({"extra_options": {"WeightSymmetric": False}}, "symmetric"),
        ({"quant_format": QuantFormat.QOperator}, "QOperator"),
        ({"weight_type": QuantType.QUInt8}, "its weight is uint8"),
    ],
)
def test_files_of_other_kinds_are_listed_with_their_reason(exported, tmp_path, options, reason):
    path, shape = _quantised(exported, "mlp", tmp_path, **options)
    found = measure_speed(
        path, lambda n: {"input": _feed(n, *shape[1:])["x"]}, [Setting(2, 1)], kernels=False
    )
    assert len(found.layers) == 3
    assert {layer.sparsity is not None for layer in found.layers} == {True}
    assert found.layers[0].sparsity == pytest.approx(0.8, abs=0.05)
    assert found.layers[0].macs == 2 * 20 * 30
    assert all(reason in layer.reason for layer in found.layers)


def test_dynamic_quantisation_is_listed_with_its_reason(make_model, sparse_weight, tmp_path):
    weight = sparse_weight(12, 8)
    model = make_model([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 12]}, ["y"], w=weight)
    onnx.save(model, tmp_path / "f.onnx")
    quantize_dynamic(tmp_path / "f.onnx", tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    found = measure_speed(tmp_path / "q.onnx", lambda n: _feed(n, 12), [Setting(2, 1)],
                          kernels=False)  # fmt: skip
    assert [layer.operator for layer in found.layers] == ["MatMulInteger"]
    assert "while it runs" in found.layers[0].reason
    assert found.layers[0].sparsity == pytest.approx(np.mean(weight == 0), abs=0.02)


def test_an_operator_with_other_scales_computes_something_else(replaced, make_model, monkeypatch):
    """The comparison above sees a wrong scale."""
    build = QuantisedOperator.build

    def wrong(self, *args):
        rounding = replace(self.rounding, scales=self.rounding.scales * np.float32(1.05))
        return build(replace(self, rounding=rounding), *args)

    monkeypatch.setattr(QuantisedOperator, "build", wrong)
    with pytest.raises(AssertionError):
        replaced(_qdq(make_model, _weight(12, 6)), _feed(50, 12))
