"""Layers that no sparse operator can compute are not changed, and have a reason."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export.sparse.find import find_layers
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.patterns.stored import stored_weight

X = {"x": ["n", 12]}
MATMUL = ("MatMul", ["x", "w"], ["y"])


def _graph(model):
    return Graph(to_ir(model))


def _reason(model, place=0):
    return find_layers(_graph(model))[place].found.reason


def test_a_weight_that_is_computed(make_model):
    model = make_model([("MatMul", ["x", "v"], ["y"])], X | {"v": [12, 4]}, ["y"])
    assert "not constant" in _reason(model)


def test_a_weight_that_a_caller_may_replace(make_model, sparse_weight):
    model = make_model([MATMUL], X, ["y"], w=sparse_weight(12, 4))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [12, 4]))
    assert "listed as a graph input" in _reason(model)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_weight_of_another_type(make_model, sparse_weight, dtype):
    model = make_model([MATMUL], X, ["y"], w=sparse_weight(12, 4).astype(dtype))
    assert str(np.dtype(dtype)) in _reason(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite(make_model, sparse_weight, value):
    weight = sparse_weight(12, 4)
    weight[0, 0] = value
    assert "not finite" in _reason(make_model([MATMUL], X, ["y"], w=weight))


def test_a_weight_of_more_axes(make_model, sparse_weight):
    model = make_model([MATMUL], {"x": [3, "n", 12]}, ["y"], w=sparse_weight(3, 12, 4))
    assert "[3, 12, 4]" in _reason(model)


def test_a_weight_at_the_left(make_model, sparse_weight):
    model = make_model([("MatMul", ["w", "x"], ["y"])], {"x": [12, 3]}, ["y"], w=np.eye(12))
    assert "its weight is the left factor, and the kernels take x W" in _reason(model)


def test_a_product_of_two_constants(make_model, sparse_weight):
    nodes = [("MatMul", ["a", "b"], ["w"]), MATMUL]
    model = make_model(nodes, X, ["y"], a=sparse_weight(12, 3), b=sparse_weight(3, 4))
    assert "both factors are constant" in _reason(model)


def test_a_gemm_whose_input_is_transposed(make_model, sparse_weight):
    node = ("Gemm", ["x", "w"], ["y"], {"transA": 1})
    assert "transA" in _reason(make_model([node], {"x": [12, 3]}, ["y"], w=sparse_weight(12, 4)))


def test_a_gemm_that_adds_a_matrix(make_model, sparse_weight):
    node = ("Gemm", ["x", "w", "c"], ["y"])
    constants = {"w": sparse_weight(12, 4), "c": np.ones((3, 4), np.float32)}
    assert "bias" in _reason(make_model([node], {"x": [3, 12]}, ["y"], **constants))


def test_a_convolution_of_three_axes(make_model, sparse_weight):
    model = make_model(
        [("Conv", ["x", "w"], ["y"])], {"x": [1, 8, 9, 9, 9]}, ["y"], w=sparse_weight(6, 8, 3, 3, 3)
    )
    assert "[6, 8, 3, 3, 3], and 3 or 4 axes are needed" in _reason(model)


def test_a_convolution_beyond_what_the_kernels_take(make_model, sparse_weight):
    node = ("Conv", ["x", "w"], ["y"], {"pads": [40_000, 0]})
    model = make_model([node], {"x": [1, 8, 9]}, ["y"], w=sparse_weight(6, 8, 3))
    assert "at most 32,768" in _reason(model)


def test_padding_that_depends_on_the_size(make_model, sparse_weight):
    node = ("Conv", ["x", "w"], ["y"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})
    model = make_model([node], {"x": [1, 8, 9, 9]}, ["y"], w=sparse_weight(6, 8, 3, 3))
    assert "SAME_UPPER" in _reason(model)


def test_a_layer_in_a_subgraph_and_what_it_reads_from_outside(rewritten, make_model, sparse_weight):
    """The product is read in a branch of an If, so nothing after it may be fused."""
    y = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    then = helper.make_graph(
        [helper.make_node("MatMul", ["m", "v"], ["y"], "inner")], "then", [], y
    )
    other = helper.make_graph([helper.make_node("Neg", ["m"], ["y"], "neg")], "else", [], y)
    nodes = [
        ("MatMul", ["x", "w"], ["m"]),
        ("Relu", ["m"], ["r"]),
        ("If", ["yes"], ["z"], {"then_branch": then, "else_branch": other}),
    ]
    constants = {"w": sparse_weight(12, 5), "v": sparse_weight(5, 5), "yes": np.array(True)}
    found = rewritten(make_model(nodes, X, ["r", "z"], **constants))
    assert found.kinds == ["SparseLinear", "Relu", "If"]
    assert "inside" in found.layers[1].found.reason


def test_without_the_library_onnx_runtime_names_the_operator(rewritten, make_model, sparse_weight):
    found = rewritten(make_model([MATMUL], X, ["y"], w=sparse_weight(12, 5)))
    with pytest.raises(Exception, match="SparseLinear"):
        onnxruntime.InferenceSession(found.model.SerializeToString())


def test_an_operator_of_the_same_name_in_another_domain_is_not_ours(sparse_weight):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain="com.example")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 12])
    weight = numpy_helper.from_array(sparse_weight(12, 4), "w")
    graph = helper.make_graph([node], "g", [x], [], [weight])
    assert find_layers(_graph(onnx.ModelProto(graph=graph))) == []


@pytest.mark.parametrize(
    ("level", "kinds"),
    [
        ("ORT_ENABLE_EXTENDED", ["FusedConv", "Conv"]),
        ("ORT_ENABLE_ALL", ["Conv", "Conv"]),
    ],
)
def test_layers_that_onnx_runtime_has_optimised_are_listed(
    make_model, sparse_weight, tmp_path, level, kinds
):
    nodes = [("Conv", ["x", "w"], ["a"]), ("Relu", ["a"], ["r"]), ("Conv", ["r", "v"], ["y"])]
    weights = {"w": sparse_weight(16, 16, 3, 3), "v": sparse_weight(16, 16, 1, 1)}
    model = make_model(nodes, {"x": ["n", 16, 6, 6]}, ["y"], **weights)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "model.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    graph = _graph(onnx.load(tmp_path / "model.onnx"))
    layers = find_layers(graph)
    assert [layer.node.op_type for layer in layers] == kinds
    optimised = [layer for layer in layers if layer.node.domain]
    assert all("give the file before optimisation" in each.found.reason for each in optimised)
    if "FusedConv" in kinds:
        assert np.array_equal(stored_weight(graph, layers[0].node).array, weights["w"])
