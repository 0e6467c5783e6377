"""Quantised matrix products that go on in floats become one operator with what follows them."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.find import find_layers, fuse
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Placement
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.read_back import packed_weights

X_SCALE, Y_SCALE = np.float32(0.05), np.float32(0.07)
BIAS = np.linspace(-2, 2, 6, dtype=np.float32)
FROM_X = [
    ("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
    ("DequantizeLinear", ["xq", "xs", "xz"], ["x'"]),
    ("DequantizeLinear", ["w", "ws"], ["w'"], {"axis": 1}),
]
PRODUCT = ("MatMul", ["x'", "w'"], ["m"])
BIASED = [PRODUCT, ("Add", ["b", "m"], ["a"])]
GELU = [
    ("Div", ["a", "root"], ["g1"]),
    ("Erf", ["g1"], ["g2"]),
    ("Add", ["g2", "one"], ["g3"]),
    ("Mul", ["a", "g3"], ["g4"]),
    ("Mul", ["g4", "half"], ["g"]),
]


def _to_y(name):
    return [
        ("QuantizeLinear", [name, "ys", "yz"], ["yq"]),
        ("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]


def _model(make_model, nodes, outputs=("y",), inputs=None, **new):
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (12, 6)) * (random.random((12, 6)) < 0.3)
    constants = {
        "xs": X_SCALE, "xz": np.uint8(100), "w": weight.astype(np.int8),
        "ws": np.linspace(0.002, 0.02, 6, dtype=np.float32), "b": BIAS,
        "ys": Y_SCALE, "yz": np.uint8(90), "root": np.float32(2**0.5),
        "one": np.float32(1), "half": np.float32(0.5),
    } | new  # fmt: skip
    return make_model(
        [*FROM_X, *nodes], {"x": ["n", 5, 12]} | (inputs or {}), list(outputs), **constants
    )


@pytest.fixture
def check(kernels):
    """Replace all, compare with ONNX Runtime, unoptimised; return the kinds of nodes."""

    def compare(model, shapes=None, tolerance=1e-5, blocks="outputs"):
        graph = Graph(to_ir(model))
        found = fuse(graph, find_layers(graph), shapes or {})
        plan = {each: Placement(Block(4, blocks)) for each in found}
        sparse = ir.to_proto(rewrite(graph, plan))
        onnx.checker.check_model(sparse)
        plain, ours = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        ours.register_custom_ops_library(str(kernels))
        random = np.random.default_rng(1)
        feeds = {
            value.name: 3 * random.standard_normal([d.dim_value or 4 for d in dims], np.float32)
            for value in model.graph.input
            for dims in [value.type.tensor_type.shape.dim]
        }
        expected = onnxruntime.InferenceSession(model.SerializeToString(), plain).run(None, feeds)
        results = onnxruntime.InferenceSession(sparse.SerializeToString(), ours).run(None, feeds)
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))
        ((name, weight),) = packed_weights(ir.from_proto(sparse), graph.model)
        stored = next(t for t in model.graph.initializer if t.name == "w")
        np.testing.assert_array_equal(weight, onnx.numpy_helper.to_array(stored))
        assert name == "w"
        return [node.op_type for node in sparse.graph.node]

    return compare


@pytest.mark.parametrize("blocks", ["outputs", "inputs"])
@pytest.mark.parametrize(
    ("nodes", "last"),
    [
        ([PRODUCT], "m"),
        (BIASED, "a"),
        ([*BIASED, ("Relu", ["a"], ["r"])], "r"),
        ([PRODUCT, ("Clip", ["m", "", "one"], ["r"])], "r"),
        ([*BIASED, *GELU], "g"),
    ],
)
def test_the_result_is_floats(check, make_model, nodes, last, blocks):
    model = _model(make_model, nodes, [last])
    assert check(model, blocks=blocks) == ["QuantizeLinear", "SparseQLinearToFloat"]


def test_a_gemm_with_its_bias(check, make_model):
    nodes = [
        ("DequantizeLinear", ["ib", "ibs"], ["b'"], {"axis": 0}),
        ("Gemm", ["x'", "w'", "b'"], ["m"]),
        ("Sigmoid", ["m"], ["y"]),
    ]
    scales = X_SCALE * np.linspace(0.002, 0.02, 6, dtype=np.float32)
    bias = {"ib": np.arange(6, dtype=np.int32) * 500, "ibs": scales}
    model = _model(make_model, nodes, inputs={"x": ["n", 12]}, **bias)
    assert check(model) == ["QuantizeLinear", "SparseQLinearToFloat", "Sigmoid"]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_is_added(check, make_model, swapped):
    read = ["a", "r"] if swapped else ["r", "a"]
    model = _model(make_model, [*BIASED, ("Add", read, ["y"])], inputs={"r": ["n", 5, 6]})
    shapes = dict.fromkeys("ary", (4, 5, 6))
    assert check(model, shapes) == ["QuantizeLinear", "SparseQLinearToFloat"]
    assert check(model) == ["QuantizeLinear", "SparseQLinearToFloat", "Add"]


@pytest.mark.parametrize(
    ("nodes", "last"),
    [(BIASED, "a"), ([*BIASED, ("Relu", ["a"], ["r"])], "r"), ([*BIASED, *GELU], "g")],
)
def test_the_result_is_rounded_to_bytes(check, make_model, nodes, last):
    """No value is rounded in between, in either: only ties may differ."""
    model = _model(make_model, [*nodes, *_to_y(last)])
    kinds = check(model, tolerance=1e-6)
    assert kinds == ["QuantizeLinear", "SparseQLinearViaFloat", "DequantizeLinear"]


def test_a_residual_is_not_rounded_in_the_operator(check, make_model):
    nodes = [*BIASED, ("Add", ["a", "r"], ["s"]), *_to_y("s")]
    model = _model(make_model, nodes, inputs={"r": ["n", 5, 6]})
    kinds = check(model, dict.fromkeys("ars", (4, 5, 6)))
    assert kinds == ["QuantizeLinear", "SparseQLinearToFloat", "QuantizeLinear", "DequantizeLinear"]


def test_signed_bytes_are_made_by_onnx_runtime(check, make_model):
    model = _model(make_model, [*BIASED, *_to_y("a")], yz=np.int8(9))
    kinds = check(model)
    assert kinds == ["QuantizeLinear", "SparseQLinearToFloat", "QuantizeLinear", "DequantizeLinear"]


def test_a_value_that_others_read_is_not_fused_over(check, make_model):
    nodes = [*BIASED, *GELU, *_to_y("g")]
    kinds = check(_model(make_model, nodes, ["y", "g"]))
    assert kinds == ["QuantizeLinear", "SparseQLinearToFloat", "QuantizeLinear", "DequantizeLinear"]
    kinds = check(_model(make_model, nodes, ["y", "a"]))
    assert kinds[:2] == ["QuantizeLinear", "SparseQLinearToFloat"]
    assert "Erf" in kinds


@pytest.mark.parametrize("value", [np.nan, np.inf, -2e38])
def test_a_bias_that_is_not_finite_stays_outside(make_model, value):
    model = _model(make_model, BIASED, ["a"], b=np.float32([0, 0, 0, 0, 0, value]))
    graph = Graph(to_ir(model))
    (operator,) = fuse(graph, find_layers(graph), {})
    assert isinstance(operator, SparseOperator)
    assert operator.bias is None


def test_scales_that_leave_float32_have_a_reason(make_model):
    model = _model(make_model, BIASED, ["a"], xs=np.float32(1e30), ws=np.full(6, 1, np.float32))
    (layer,) = find_layers(Graph(to_ir(model)))
    assert isinstance(layer.found, Unsupported)
    assert "too large for float32" in layer.found.reason


def test_an_operator_with_another_bias_computes_something_else(check, make_model, monkeypatch):
    """The comparison detects a wrong epilogue."""
    build = SparseOperator.build

    def wrong(self, *args):
        object.__setattr__(self, "bias", self.bias + np.float32(0.01))
        return build(self, *args)

    monkeypatch.setattr(SparseOperator, "build", wrong)
    with pytest.raises(AssertionError):
        check(_model(make_model, BIASED, ["a"]))
