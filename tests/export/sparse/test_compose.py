"""Everything but the rewritten nodes stays in the model."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from mfac_compress.export import Workload, measure_speed
from mfac_compress.export.sparse.compose import name_nodes
from mfac_compress.export.sparse.find import find_layers
from mfac_compress.export.sparse.foreign import inline_functions, to_ir
from mfac_compress.export.sparse.graph import Graph

CONV = ("Conv", ["x", "w"], ["a"], {"pads": [1, 1, 1, 1]})
X = {"x": ["n", 2, 4, 6]}


def _with_sparse(model, name="s"):
    """Make the initializer a sparse one, of six numbers of which one is not zero."""
    (dense,) = [each for each in model.graph.initializer if each.name == name]
    model.graph.initializer.remove(dense)
    sparse = onnx.SparseTensorProto(dims=[6])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([1.5], np.float32), name))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([3]), f"{name}.indices"))
    model.graph.sparse_initializer.append(sparse)
    return model


def test_sparse_initializers_become_dense_ones(rewritten, make_model, sparse_weight):
    for kind in ("Mul", "Add"):
        model = make_model(
            [CONV, (kind, ["a", "s"], ["y"])], X, ["y"], w=sparse_weight(3, 2, 3, 3),
            s=np.zeros(6, np.float32),
        )  # fmt: skip
        found = rewritten(_with_sparse(model))
        (dense,) = [each for each in found.model.graph.initializer if each.name == "s"]
        assert numpy_helper.to_array(dense).tolist() == [0, 0, 0, 1.5, 0, 0]
        assert "Conv" not in found.kinds


def test_quantisation_annotations_stay_with_their_tensors(rewritten, make_model, sparse_weight):
    model = make_model(
        [CONV, ("Relu", ["a"], ["b"]), ("Mul", ["b", "f"], ["y"])], X, ["y"],
        w=sparse_weight(3, 2, 3, 3), f=np.float32(2), scale=np.float32(0.1),
    )  # fmt: skip
    for name in ("f", "w"):
        note = model.graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    found = rewritten(model).model.graph
    assert [note.tensor_name for note in found.quantization_annotation] == ["f"]
    assert "scale" in {tensor.name for tensor in found.initializer}


def test_layers_inside_functions_are_layers(rewritten, make_model, sparse_weight):
    opsets = [helper.make_opsetid("", 20)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    function = helper.make_function("own", "Layer", ["x", "w"], ["y"], nodes, opsets)
    calls = [("Layer", ["x", "w"], ["a"]), ("Layer", ["a", "w"], ["y"])]
    model = make_model([("Neg", ["x"], ["y"])], {"x": ["n", 6]}, ["y"], w=sparse_weight(6, 6))
    del model.graph.node[:]
    for kind, reads, makes in calls:
        model.graph.node.append(helper.make_node(kind, reads, makes, domain="own"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    (layer,) = find_layers(Graph(to_ir(model)))
    assert "inside the function Layer" in layer.found.reason
    whole = to_ir(inline_functions(model))
    name_nodes(whole)
    assert rewritten(ir.to_proto(whole)).kinds == ["SparseLinear"] * 2


def test_nodes_in_any_order_are_sorted(make_model, sparse_weight, tmp_path):
    nodes = [CONV, ("Relu", ["a"], ["r"]), ("Conv", ["r", "v"], ["y"])]
    weights = {"w": sparse_weight(3, 2, 3, 3), "v": sparse_weight(4, 3, 1, 1)}
    model = make_model(nodes, X, ["y"], **weights)
    kinds = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(kinds[place] for place in (2, 0, 1))
    onnx.save(model, tmp_path / "model.onnx")
    found = measure_speed(
        tmp_path / "model.onnx",
        lambda each: {"x": np.ones((each.batch_size, 2, 4, 6), np.float32)},
        [Workload(2, 1)], kernels=False,
    )  # fmt: skip
    assert [layer.weight for layer in found.layers] == ["w", "v"]


def test_new_initializers_have_names_that_are_free(rewritten, make_model, sparse_weight):
    inner = helper.make_graph(
        [helper.make_node("Neg", ["r"], ["layer.indices"])],
        "branch",
        [],
        [helper.make_tensor_value_info("layer.indices", 1, None)],
    )
    nodes = [
        ("MatMul", ["x", "w"], ["layer.values"], {"name": "layer"}),
        ("Relu", ["layer.values"], ["r"]),
        ("If", ["yes"], ["layer.starts"], {"then_branch": inner, "else_branch": inner}),
        ("Relu", ["layer.starts"], ["y"]),
    ]
    constants = {"w": sparse_weight(6, 6), "yes": np.array(True)}
    found = rewritten(make_model(nodes, {"x": ["n", 6]}, ["y"], **constants))
    assert found.kinds[0] == "SparseLinear"
