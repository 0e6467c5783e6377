"""The zeros of a weight are counted in whatever form the file stores it."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from mfac_compress.export import Workload, measure_speed
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.patterns.stored import stored_weight

WEIGHT = np.array([[0, 3, 0, -4], [5, 0, 0, 0], [0, 0, 7, 0]], np.int64)  # inputs, outputs


def _ones(*shape):
    return lambda workload: {"x": np.ones((workload.batch_size, *shape), np.float32)}


def _of_last(model):
    graph = Graph(to_ir(model))
    return stored_weight(graph, graph.nodes[-1])


def _read(*nodes, **constants):
    """The weight of the last of some nodes, given as (kind, inputs, attributes)."""
    made = [
        helper.make_node(kind, reads, ["w'" if kind == "DequantizeLinear" else "y"], **attributes)
        for kind, reads, attributes in nodes
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(made, "test", [], [], tensors)
    return _of_last(helper.make_model(graph))


def _dequantise(**attributes):
    return ("DequantizeLinear", ["w", "s", "z"], attributes)


PRODUCT = ("MatMul", ["x", "w'"], {})


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_each_channel_may_have_a_zero_point(axis):
    zeros = np.arange(100, 100 + WEIGHT.shape[axis])
    weight = WEIGHT + (zeros[:, None] if axis in (0, -2) else zeros)
    found = _read(
        _dequantise(axis=axis), PRODUCT, w=weight.astype(np.uint8),
        s=np.ones(len(zeros), np.float32), z=zeros.astype(np.uint8),
    )  # fmt: skip
    assert found.name == "w"
    assert np.array_equal(found.array, WEIGHT)


def test_each_block_may_have_a_zero_point():
    zeros = np.array([[100, 101, 102, 103], [90, 91, 92, 93]])
    weight = WEIGHT + zeros[[0, 0, 1]]
    found = _read(
        _dequantise(axis=0, block_size=2), PRODUCT,
        w=weight.astype(np.uint8), s=np.ones((2, 4), np.float16), z=zeros.astype(np.uint8),
    )  # fmt: skip
    assert np.array_equal(found.array, WEIGHT)


OTHERS = {
    "QLinearMatMul": ["x", "xs", "xz", "w", "s", "z", "ys", "yz"],
    "QGemm": ["x", "xs", "xz", "w", "s", "z"],
    "MatMulInteger": ["x", "w", "xz", "z"],
    "MatMulIntegerToFloat": ["x", "w", "xs", "s", "xz", "z"],
    "DynamicQuantizeMatMul": ["x", "w", "s", "z"],
    "QLinearConv": ["x", "xs", "xz", "w", "s", "z", "ys", "yz"],
    "ConvInteger": ["x", "w", "xz", "z"],
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("channels", [False, True])
def test_other_quantised_layers_have_zero_points(kind, channels):
    standard = kind in ("QLinearMatMul", "MatMulInteger", "QLinearConv", "ConvInteger")
    domain = {"domain": "" if standard else "com.microsoft"}
    zeros = np.arange(100, 104) if channels else np.array(100)
    shift, weight = zeros, WEIGHT
    if "Conv" in kind:
        weight = WEIGHT.T[:, :, None, None]
        shift = zeros.reshape(-1, 1, 1, 1)
    found = _read(
        (kind, OTHERS[kind], domain),
        w=(weight + shift).astype(np.uint8), z=zeros.astype(np.uint8),
    )  # fmt: skip
    assert np.array_equal(found.array, weight)


def test_a_transposed_qgemm_has_a_zero_point_for_each_row():
    zeros = np.arange(100, 104)
    found = _read(
        ("QGemm", OTHERS["QGemm"], {"domain": "com.microsoft", "transB": 1}),
        w=(WEIGHT.T + zeros[:, None]).astype(np.uint8), z=zeros.astype(np.uint8),
    )  # fmt: skip
    assert np.array_equal(found.array, WEIGHT.T)


def test_packed_weights_are_not_described(make_model, tmp_path):
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    model = make_model([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, ["y"], opset=21, w=weight)
    quantiser = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True)
    quantiser.process()
    onnx.save(quantiser.model.model, tmp_path / "q.onnx")
    (layer,) = measure_speed(
        tmp_path / "q.onnx", _ones(64), [Workload(2, 1)],
        kernels=False,
    ).layers  # fmt: skip
    assert layer.weight is not None
    assert (layer.shape, layer.sparsity, layer.macs, layer.kept_macs) == ((), None, None, None)


def test_a_quantised_left_factor_is_a_weight(make_model, tmp_path):
    nodes = [
        ("DequantizeLinear", ["w", "s"], ["w'"]),
        ("MatMul", ["w'", "x"], ["y"]),
    ]
    model = make_model(nodes, {"x": [4, 5]}, ["y"], w=WEIGHT.astype(np.int8), s=np.float32(0.1))
    onnx.save(model, tmp_path / "q.onnx")
    (layer,) = measure_speed(
        tmp_path / "q.onnx", lambda _: {"x": np.ones((4, 5), np.float32)}, [Workload(1, 1)],
        kernels=False,
    ).layers  # fmt: skip
    assert "left factor" in layer.reason
    assert (layer.weight, layer.shape) == ("w", (3, 4))
    assert (layer.macs, layer.kept_macs) == (3 * 4 * 5, 4 * 5)
