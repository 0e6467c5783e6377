"""Files that ONNX Runtime quantised: which layers become sparse, and the reasons for others."""

import numpy as np
import onnx
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

from mfac_compress.export import Workload, export_onnx, measure_speed
from mfac_compress.export.sparse import choose, whole
from mfac_compress.export.sparse.layout import chains
from mfac_compress.export.sparse.nodes import DOMAIN


def _inputs_of(shape):
    return lambda workload: {"input": _feed(workload.batch_size, *shape[1:])["x"]}


def _feeds_of(features):
    return lambda workload: _feed(workload.batch_size, features)


def _feed(*shape):
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 3}


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
    found, operators = replaced(onnx.load(path), {"input": _feed(*shape)["x"]}, steps=3)
    assert [kind for kind in found if kind.startswith("Sparse")] == kinds
    lengths = [len(chain) for chain in chains(operators)]
    assert lengths == ([3, 1] if name == "cnn" else [1, 1, 1])


def _times(monkeypatch, kernels):
    """Files with sparse operators take half as long as those without."""
    del kernels

    def time_models(models, feeds, *, threads, rounds):
        sparse = [any(node.domain == DOMAIN for node in model.graph) for model in models]
        return [[1.0 if each else 2.0] * 3 for each in sparse]

    monkeypatch.setattr(choose, "time_models", time_models)
    monkeypatch.setattr(whole, "time_models", time_models)


def test_the_report_counts_the_zeros_of_quantised_weights(exported, tmp_path, monkeypatch, kernels):
    path, shape = _quantised(exported, "cnn", tmp_path, per_channel=True)
    _times(monkeypatch, kernels)
    found = measure_speed(path, _inputs_of(shape), [Workload(2, 1)])
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
        (
            {"weight_type": QuantType.QUInt8, "quant_format": QuantFormat.QOperator},
            "QOperator",
        ),
    ],
)
def test_files_of_other_kinds_are_listed_with_their_reason(exported, tmp_path, options, reason):
    path, shape = _quantised(exported, "mlp", tmp_path, **options)
    found = measure_speed(
        path,
        _inputs_of(shape),
        [Workload(2, 1)],
        kernels=False,
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
    found = measure_speed(tmp_path / "q.onnx", _feeds_of(12), [Workload(2, 1)],
                          kernels=False)  # fmt: skip
    assert [layer.operator for layer in found.layers] == ["MatMulInteger"]
    assert "dynamically" in found.layers[0].reason
    assert found.layers[0].sparsity == pytest.approx(np.mean(weight == 0), abs=0.02)
