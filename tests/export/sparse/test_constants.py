"""Values computed from constants are constants, bit-identical to ONNX Runtime's."""

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export.sparse import constants, fold, foreign
from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.difference import largest_difference
from mfac_compress.export.sparse.find import find_layers
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Placement
from mfac_compress.export.sparse.operator import SparseOperator
from mfac_compress.export.sparse.patterns.stored import stored_weight

X = {"x": ["n", 12]}
W = (0.3 * np.random.default_rng(0).standard_normal((12, 4)) * np.eye(12)[:, :4]).astype(np.float32)
Q = np.arange(-24, 24, dtype=np.int8).reshape(12, 4)
FORMS = {
    "float16 storage": ([("Cast", ["w"], ["v"], {"to": 1})], {"w": W.astype(np.float16)}),
    "8 bits and a scale": (
        [("Cast", ["w"], ["f"], {"to": 1}), ("Mul", ["f", "s"], ["v"])],
        {"w": Q, "s": np.float32(1 / 7)},
    ),
    "8 bits, dequantised": (
        [("DequantizeLinear", ["w", "s"], ["v"])],
        {"w": Q, "s": np.linspace(0.1, 1, 4, dtype=np.float32)},
    ),
    "trained for 8 bits": (
        [("QuantizeLinear", ["w", "s"], ["q"]), ("DequantizeLinear", ["q", "s"], ["v"])],
        {"w": W, "s": np.float32(0.01)},
    ),
    "another shape": (
        [("Reshape", ["w", "to"], ["v"])], {"w": W.ravel(), "to": np.array([12, -1])},
    ),
    "axes of 1": (
        [("Squeeze", ["w", "a"], ["s"]), ("Unsqueeze", ["s", "a"], ["u"]),
         ("Squeeze", ["u", "a"], ["v"])],
        {"w": W[None], "a": np.array([0])},
    ),
    "another order": ([("Transpose", ["w"], ["v"], {"perm": [1, 0]})], {"w": W.T.copy()}),
    "parts": (
        [("Concat", ["w", "b"], ["v"], {"axis": 0})], {"w": W[:8], "b": W[8:]},
    ),
    "a part": (
        [("Slice", ["w", "from", "to"], ["v"])],
        {"w": np.vstack([W, W]), "from": np.array([6]), "to": np.array([18])},
    ),
    "a name": ([("Identity", ["w"], ["v"])], {"w": W}),
    "weight normalisation": (
        [("ReduceL2", ["w", "a"], ["n"]), ("Div", ["w", "n"], ["d"]), ("Mul", ["d", "g"], ["v"])],
        {"w": W + np.float32(1), "a": np.array([0]), "g": np.linspace(1, 3, 4, dtype=np.float32)},
    ),
}  # fmt: skip


def _graph(model):
    return Graph(to_ir(model))


def _value(graph, name):
    values = (v for node in graph.nodes for v in (*node.inputs, *node.outputs) if v is not None)
    return next(value for value in values if value.name == name)


def _constant(graph, name):
    return graph.constant(_value(graph, name))


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_that_is_computed_is_what_onnx_runtime_makes_of_it(make_model, form):
    nodes, tensors = FORMS[form]
    model = make_model([*nodes, ("MatMul", ["x", "v"], ["y"])], X, ["y"], **tensors)
    graph = _graph(model)
    found = _constant(graph, "v")
    model.graph.output.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = session.run(["v"], {"x": np.ones((1, 12), np.float32)})[0]
    assert found.dtype == expected.dtype
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert stored_weight(graph, graph.nodes[-1]).name == "w"
    assert isinstance(find_layers(graph)[-1].found, SparseOperator)


@pytest.mark.parametrize("form", FORMS)
def test_nodes_of_computed_constants_are_removed(rewritten, make_model, form):
    nodes, tensors = FORMS[form]
    model = make_model([*nodes, ("MatMul", ["x", "v"], ["y"])], X, ["y"], **tensors)
    found = rewritten(model)
    assert found.kinds == ["SparseLinear"]
    assert "w" not in {tensor.name for tensor in found.model.graph.initializer}


def test_what_is_not_replaced_stays_as_the_file_stores_it(rewritten, make_model, sparse_weight):
    nodes = [
        ("Cast", ["h"], ["v"], {"to": 1}),
        ("Mul", ["x", "v"], ["m"]),
        ("MatMul", ["m", "w"], ["y"]),
    ]
    half = np.ones(12, np.float16)
    found = rewritten(make_model(nodes, X, ["y"], h=half, w=sparse_weight(12, 4)))
    assert found.kinds == ["Cast", "Mul", "SparseLinear"]
    (kept,) = [each for each in found.model.graph.initializer if each.name == "h"]
    assert kept.data_type == TensorProto.FLOAT16


def test_constant_nodes_hold_numbers_in_several_ways(make_model):
    nodes = [
        ("Constant", [], ["a"], {"value_floats": [1.0, 2.0]}),
        ("Constant", [], ["b"], {"value_int": 7}),
        ("Constant", [], ["c"], {"value": numpy_helper.from_array(np.float64(0.5))}),
        ("Constant", [], ["d"], {"value_string": "no number"}),
        ("Identity", ["x"], ["y"]),
    ]
    graph = _graph(make_model(nodes, X, ["y"]))
    assert _constant(graph, "a").tolist() == [1, 2]
    assert (graph.scalar(_value(graph, "b")), graph.scalar(_value(graph, "c"))) == (7, 0.5)
    assert _constant(graph, "d") is None


def test_large_outputs_of_small_inputs_are_not_constants(make_model, monkeypatch):
    nodes = [
        ("ConstantOfShape", ["n"], ["zeros"]),
        ("Add", ["column", "row"], ["table"]),
        ("Concat", ["column"] * 5, ["long"], {"axis": 0}),
        ("Identity", ["x"], ["y"]),
    ]
    parts = {"column": np.ones((99, 1), np.float32), "row": np.ones((1, 99), np.float32)}
    model = make_model(nodes, X, ["y"], n=np.array([99, 99]), **parts)
    assert _constant(_graph(model), "zeros") is None
    assert _constant(_graph(model), "table").shape == (99, 99)
    monkeypatch.setattr(fold, "MAX_ELEMENTS", 400)
    assert _constant(_graph(model), "table") is None
    assert _constant(_graph(model), "long") is None


@pytest.mark.parametrize(("limit", "most"), [("_MAX_NODES", 1), ("_MAX_ELEMENTS_FOLDED", 60)])
def test_folding_has_a_limit(make_model, monkeypatch, limit, most):
    monkeypatch.setattr(constants, limit, most)
    nodes = [("Abs", ["w"], ["a"]), ("Neg", ["w"], ["b"]), ("MatMul", ["x", "b"], ["y"])]
    graph = _graph(make_model(nodes, X, ["y"], w=W))
    assert _constant(graph, "a") is not None
    assert _constant(graph, "b") is None


def test_thousands_of_nodes_before_a_constant_do_not_recurse(make_model):
    names = ["w", *(f"v{n}" for n in range(3000))]
    nodes = [("Identity", [a], [b]) for a, b in pairwise(names)]
    graph = _graph(make_model([*nodes, ("MatMul", ["x", names[-1]], ["y"])], X, ["y"], w=W[:1]))
    assert graph.stored(_value(graph, names[-1])) == "w"


def _listed(make_model, sparse_weight, version):
    """Initializers that are inputs, too."""
    nodes = [("Conv", ["x", "w"], ["a"]), ("Relu", ["a"], ["y"])]
    model = make_model(nodes, {"x": ["n", 3, 6, 6]}, ["y"], opset=8, w=sparse_weight(4, 3, 3, 3))
    model.ir_version = version
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    onnx.checker.check_model(model)
    return model


def test_initializers_of_old_files_are_constants_though_they_are_listed(make_model, sparse_weight):
    graph = _graph(_listed(make_model, sparse_weight, 3))
    assert np.array_equal(_constant(graph, "w"), sparse_weight(4, 3, 3, 3))
    assert isinstance(find_layers(graph)[0].found, SparseOperator)


def test_sparse_operators_in_old_files(make_model, sparse_weight, rewritten):
    model = _listed(make_model, sparse_weight, 3)
    del model.graph.input[1:]  # what the comparison feeds
    found = rewritten(model)
    assert found.kinds == ["SparseConv"]
    assert found.model.ir_version == 4
    assert [value.name for value in found.model.graph.input] == ["x"]


def test_from_version_4_on_a_listed_initializer_may_be_replaced(make_model, sparse_weight):
    graph = _graph(_listed(make_model, sparse_weight, 4))
    assert _constant(graph, "w") is None
    assert "listed as a graph input" in find_layers(graph)[0].found.reason


def test_rounding_by_onnx_runtime_alone_is_not_a_difference(kernels, make_model, tmp_path):
    """With optimisations ONNX Runtime rounds the inputs of 8-bit weights to 8 bits."""
    nodes, tensors = FORMS["8 bits, dequantised"]
    model = make_model([*nodes, ("MatMul", ["x", "v"], ["y"])], X, ["y"], **tensors)
    graph = _graph(model)
    (operator,) = [layer.found for layer in find_layers(graph)]
    sparse = rewrite(graph, {operator: Placement(Block(1))})
    x = np.random.default_rng(0).standard_normal((3, 12), dtype=np.float32)
    onnx.save(model, tmp_path / "model.onnx")
    assert largest_difference(tmp_path / "model.onnx", sparse, {"x": x}) < 1e-5


@pytest.mark.parametrize("axes", [1, 2])
def test_a_sparse_initializer_is_a_constant(
    rewritten, make_model, sparse_weight, axes, monkeypatch
):
    weight = sparse_weight(12, 4)
    model = make_model([("MatMul", ["x", "w"], ["y"])], X, ["y"], w=weight)
    places = np.argwhere(weight) if axes == 2 else np.flatnonzero(weight)
    sparse = onnx.SparseTensorProto(dims=weight.shape)
    sparse.values.CopyFrom(numpy_helper.from_array(weight[weight != 0], "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(places))
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(sparse)
    assert np.array_equal(_constant(_graph(model), "w"), weight)
    found = rewritten(model)
    assert found.kinds == ["SparseLinear"]
    assert not found.model.graph.sparse_initializer
    monkeypatch.setattr(foreign, "MAX_SPARSE_ELEMENTS", 40)
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(ValueError, match="sparse tensors have 48 numbers"):
        _graph(model)
