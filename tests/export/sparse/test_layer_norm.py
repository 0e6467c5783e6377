"""Layer norms of files with sparse operators become operators of the library."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mfac_compress.export import Workload, measure_speed
from mfac_compress.export.sparse import choose, whole
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.layer_norm import use_layer_norm
from mfac_compress.export.sparse.nodes import DOMAIN, VERSION

N = 24
CONSTANTS = {
    "s": np.linspace(-1, 2, N, dtype=np.float32),
    "b": np.linspace(1, -1, N, dtype=np.float32),
    "step": np.float32(0.03),
    "zero": np.uint8(120),
}
LAYER_NORM = ("LayerNormalization", ["x", "s", "b"], ["n"])
QUANTIZE = ("QuantizeLinear", ["n", "step", "zero"], ["q"])
DEQUANTIZE = ("DequantizeLinear", ["q", "step", "zero"], ["d"])


@pytest.fixture
def replaced(kernels, make_model):
    """Replace layer norms and compare the outputs; return how often each operator is there."""

    def check(nodes, outputs, *, steps=0, inputs=None, opset=20, **constants):
        inputs = inputs or {"x": ["n", 5, N]}
        model = make_model(nodes, inputs, outputs, opset=opset, **CONSTANTS | constants)
        # The library is needed in any case: its operators are in the file.
        changed = to_ir(model)
        changed.graph.opset_imports[DOMAIN] = VERSION
        count = use_layer_norm(changed)
        proto = ir.to_proto(changed)
        onnx.checker.check_model(proto)
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(kernels))
        rng = np.random.default_rng(0)
        feeds = {
            name: rng.standard_normal([3 if d == "n" else d for d in shape]).astype(np.float32)
            for name, shape in inputs.items()
        }
        found = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)
        expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 + steps * 0.03)
        kinds = Counter(node.op_type for node in proto.graph.node)
        assert count == kinds["LayerNorm"] + kinds["LayerNormQuantize"]
        return kinds

    return check


def _kept(kinds):
    return kinds["LayerNormalization"] == 1 and not kinds["LayerNorm"] | kinds["LayerNormQuantize"]


def test_a_layer_norm_before_a_layer_is_replaced(replaced):
    nodes = [LAYER_NORM, ("MatMul", ["n", "w"], ["m"]), ("Add", ["m", "x"], ["y"])]
    kinds = replaced(nodes, ["y"], w=np.eye(N, dtype=np.float32))
    assert kinds == {"LayerNorm": 1, "MatMul": 1, "Add": 1}


def test_a_layer_norm_of_a_sum_whose_result_is_a_residual_is_replaced(replaced):
    nodes = [
        ("Add", ["x", "z"], ["a"]),
        ("LayerNormalization", ["a", "s", "b"], ["n"], {"epsilon": 1e-12}),
        ("MatMul", ["n", "w"], ["m"]),
        ("Add", ["m", "n"], ["y"]),
    ]
    inputs = {"x": ["n", 5, N], "z": ["n", 5, N]}
    kinds = replaced(nodes, ["y"], inputs=inputs, w=np.eye(N, dtype=np.float32))
    assert kinds == {"LayerNorm": 1, "MatMul": 1, "Add": 2}


def test_a_layer_norm_may_be_an_output_without_a_bias_and_in_any_rank(replaced):
    node = ("LayerNormalization", ["x", "s"], ["n"], {"axis": -1, "stash_type": 1})
    assert replaced([node], ["n"]) == {"LayerNorm": 1}
    assert replaced([node], ["n"], inputs={"x": [N]}) == {"LayerNorm": 1}
    assert replaced([node], ["n"], inputs={"x": [2, 3, "n", 4, N]}) == {"LayerNorm": 1}


def test_its_epsilon_is_kept(replaced):
    node = ("LayerNormalization", ["x", "s", "b"], ["n"], {"epsilon": 7.0})
    assert replaced([node], ["n"]) == {"LayerNorm": 1}


def test_a_scale_of_a_constant_node_is_taken(replaced):
    tensor = onnx.numpy_helper.from_array(CONSTANTS["s"])
    nodes = [("Constant", [], ["c"], {"value": tensor}), ("LayerNormalization", ["x", "c"], ["n"])]
    assert replaced(nodes, ["n"]) == {"LayerNorm": 1, "Constant": 1}


@pytest.mark.parametrize(
    ("node", "outputs"),
    [
        (("LayerNormalization", ["x", "t", "t"], ["n"], {"axis": -2}), ["n"]),
        (("LayerNormalization", ["x", "s"], ["n"], {"axis": 2}), ["n"]),
        (("LayerNormalization", ["x", "s", "b"], ["n", "mean"]), ["n", "mean"]),
        (("LayerNormalization", ["x", "s", "b"], ["n", "", "inverse"]), ["n", "inverse"]),
        (("LayerNormalization", ["x", "s", "b"], ["n"], {"epsilon": 0.0}), ["n"]),
        (("LayerNormalization", ["x", "one"], ["n"]), ["n"]),
    ],
)
def test_what_the_library_does_not_compute_is_left(replaced, node, outputs):
    t = np.linspace(-1, 1, 5 * N, dtype=np.float32).reshape(5, N)
    constants = {"t": t, "one": np.ones(1, np.float32)}
    assert _kept(replaced([node], outputs, **constants))


def test_a_scale_of_more_than_one_axis_is_left(make_model):
    node = ("LayerNormalization", ["x", "t"], ["n"])
    model = make_model([node], {"x": ["n", 5, N]}, ["n"], t=np.ones((5, N), np.float32))
    assert use_layer_norm(to_ir(model)) == 0


def test_a_scale_that_is_computed_or_given_is_left(replaced):
    node = ("LayerNormalization", ["x", "t", "b"], ["n"])
    assert _kept(replaced([("Add", ["s", "b"], ["t"]), node], ["n"]))
    assert _kept(replaced([node], ["n"], inputs={"x": ["n", 5, N], "t": [N]}))


def test_a_scale_that_a_caller_may_replace_is_left(make_model):
    model = make_model([LAYER_NORM], {"x": ["n", 5, N], "s": [N]}, ["n"], **CONSTANTS)
    assert use_layer_norm(to_ir(model)) == 0


def test_other_types_are_left(make_model):
    half = {name: CONSTANTS[name].astype(np.float16) for name in "sb"}
    cast = ("Cast", ["x"], ["h"], {"to": onnx.TensorProto.FLOAT16})
    back = ("Cast", ["n"], ["y"], {"to": onnx.TensorProto.FLOAT})
    nodes = [cast, ("LayerNormalization", ["h", "s", "b"], ["n"]), back]
    model = make_model(nodes, {"x": ["n", 5, N]}, ["y"], **half)
    assert use_layer_norm(to_ir(model)) == 0


def test_bytes_are_made_at_once(replaced):
    kinds = replaced([LAYER_NORM, QUANTIZE, DEQUANTIZE], ["d"], steps=1)
    assert kinds == {"LayerNormQuantize": 1, "DequantizeLinear": 1}


def _with_sparse_reader(make_model, *more, **constants):
    """A model in which an operator of the library reads what was dequantised."""
    nodes = [LAYER_NORM, QUANTIZE, DEQUANTIZE, ("Relu", ["d"], ["y"]), *more]
    outputs = ["y", *(made for _, _, made, *_ in more for made in made)]
    model = make_model(nodes, {"x": ["n", 5, N]}, outputs, **CONSTANTS | constants)
    changed = to_ir(model)
    relu = next(node for node in changed.graph if node.op_type == "Relu")
    relu.domain = DOMAIN
    return changed


def _kinds(model):
    return Counter(node.op_type for node in model.graph)


def test_floats_of_the_bytes_are_made_at_once_for_operators_of_the_library(make_model):
    model = _with_sparse_reader(make_model)
    assert use_layer_norm(model) == 1
    assert _kinds(model) == {"LayerNormQuantize": 1, "Relu": 1}
    (norm, relu) = model.graph
    assert [value.name for value in norm.outputs] == ["q", "d"]
    assert relu.inputs[0] is norm.outputs[1]
    assert not {"step", "zero"} & set(model.graph.initializers)


def test_floats_that_another_operator_reads_as_well_are_left_to_onnx_runtime(make_model):
    """It makes quantised operators of what reads a DequantizeLinear."""
    model = _with_sparse_reader(make_model, ("MatMul", ["d", "w"], ["m"]), w=np.eye(N, dtype="f"))
    assert use_layer_norm(model) == 1
    assert _kinds(model) == {"LayerNormQuantize": 1, "DequantizeLinear": 1, "Relu": 1, "MatMul": 1}


def test_floats_with_another_scale_are_left(make_model):
    model = _with_sparse_reader(make_model)
    dequantize = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    other = ir.Value(name="other", const_value=ir.tensor(np.float32(0.04), name="other"))
    model.graph.initializers.add(other)
    dequantize.replace_input_with(1, other)
    assert use_layer_norm(model) == 1
    assert _kinds(model) == {"LayerNormQuantize": 1, "DequantizeLinear": 1, "Relu": 1}


def test_floats_are_kept_where_something_else_reads_them(replaced):
    nodes = [LAYER_NORM, QUANTIZE, DEQUANTIZE, ("Add", ["d", "n"], ["y"])]
    kinds = replaced(nodes, ["y"], steps=1)
    assert kinds == {"LayerNorm": 1, "QuantizeLinear": 1, "DequantizeLinear": 1, "Add": 1}
    kinds = replaced([LAYER_NORM, QUANTIZE, DEQUANTIZE], ["d", "n"], steps=1)
    assert kinds == {"LayerNorm": 1, "QuantizeLinear": 1, "DequantizeLinear": 1}


@pytest.mark.parametrize(
    "constants",
    [
        {"zero": np.int8(3)},
        {"zero": np.zeros(N, np.uint8), "step": np.full(N, 0.03, np.float32)},
        {"s": np.full(N, 2e37, np.float32), "b": np.zeros(N, np.float32)},
    ],
)
def test_bytes_that_the_library_does_not_make_are_left_to_a_node(make_model, constants):
    quantize = (*QUANTIZE, {"axis": 2})
    dequantize = (*DEQUANTIZE, {"axis": 2})
    nodes = [LAYER_NORM, quantize, dequantize]
    model = to_ir(make_model(nodes, {"x": ["n", 5, N]}, ["d"], **CONSTANTS | constants))
    assert use_layer_norm(model) == 1
    assert _kinds(model) == {"LayerNorm": 1, "QuantizeLinear": 1, "DequantizeLinear": 1}


def test_two_layer_norms_may_share_their_constants(replaced):
    nodes = [
        LAYER_NORM,
        ("Relu", ["n"], ["r"]),
        ("LayerNormalization", ["r", "s", "b"], ["y"]),
    ]
    assert replaced(nodes, ["y"]) == {"LayerNorm": 2, "Relu": 1}


@pytest.fixture
def measured(kernels, make_model, sparse_weight, tmp_path, monkeypatch):
    """Measure a file of a sparse layer and a layer norm of a sum, if models take so long."""

    def measure(milliseconds):
        nodes = [
            ("MatMul", ["x", "w"], ["m"]),
            ("Add", ["m", "x"], ["a"]),
            ("Softmax", ["a"], ["p"]),  # so that the sum is not computed with the layer
            ("Add", ["p", "x"], ["e"]),
            ("LayerNormalization", ["e", "s", "b"], ["y"]),
        ]
        weight = sparse_weight(N, N)
        model = make_model(nodes, {"x": ["n", 5, N]}, ["y"], w=weight, **CONSTANTS)
        onnx.save(model, tmp_path / "model.onnx")

        def time_models(models, feeds, *, threads, rounds):
            return [[milliseconds(_kinds(model))] * 3 for model in models]

        for module in (choose, whole):
            monkeypatch.setattr(module, "time_models", time_models)
        feeds = {"x": np.random.default_rng(0).standard_normal((1, 5, N)).astype(np.float32)}
        return measure_speed(tmp_path / "model.onnx", lambda _: feeds, [Workload(1, 1)])

    return measure


def test_the_fastest_of_the_models_with_and_without_it_is_taken(measured):
    slower = measured(lambda kinds: 2.0 - kinds["SparseLinear"] + kinds["LayerNorm"] / 2)
    assert _kinds(slower.model)["LayerNormalization"] == 1
    faster = measured(lambda kinds: 2.0 - kinds["SparseLinear"] - kinds["LayerNorm"] / 2)
    assert _kinds(faster.model) == {"SparseLinear": 1, "Softmax": 1, "Add": 1, "LayerNorm": 1}
    assert faster.difference < 1e-5


def test_a_file_without_sparse_operators_keeps_its_layer_norms(measured):
    found = measured(lambda kinds: 1.0 + kinds["SparseLinear"] - kinds["LayerNorm"] / 2)
    assert found.model is None
