"""Files that onnx_ir cannot represent are read as ONNX Runtime reads them, or refused."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.foreign import to_ir

WEIGHT = np.diag(np.arange(4, dtype=np.float32))
X = {"x": ["n", 4]}


def _sparse(name):
    values = numpy_helper.from_array(WEIGHT[WEIGHT != 0], name)
    places = numpy_helper.from_array(np.flatnonzero(WEIGHT), f"{name}.places")
    return helper.make_sparse_tensor(values, places, WEIGHT.shape)


def _outputs(model):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.ones((2, 4), np.float32)})


def _read(model):
    """The model as it is written again; the first is not changed."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    return ir.to_proto(to_ir(copy))


def test_sparse_constants_become_dense_ones_in_subgraphs_too(make_model):
    y = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    then = helper.make_graph(
        [helper.make_node("MatMul", ["m", "v"], ["o"])], "then", [], y,
        sparse_initializer=[_sparse("v")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Neg", ["m"], ["o"])], "else", [], y)
    nodes = [
        ("Constant", [], ["w"], {"sparse_value": _sparse("w")}),
        ("MatMul", ["x", "w"], ["m"]),
        ("If", ["yes"], ["y"], {"then_branch": then, "else_branch": other}),
    ]
    model = make_model(nodes, X, ["y"], yes=np.array(True))
    found = _read(model)
    np.testing.assert_array_equal(_outputs(found), _outputs(model))
    (branch,) = [a.g for a in found.graph.node[2].attribute if a.name == "then_branch"]
    assert np.array_equal(numpy_helper.to_array(branch.initializer[0]), WEIGHT)


def test_sparse_tensors_that_would_fill_the_memory_are_refused(make_model):
    """Each of them would fit, all together would not."""
    model = make_model([("Relu", ["x"], ["y"])], X, ["y"])
    for n in range(5):
        model.graph.sparse_initializer.append(_sparse(f"s{n}"))
        model.graph.sparse_initializer[n].dims[:] = [2**13, 2**13]
    with pytest.raises(ValueError, match="have 335,544,320 numbers"):
        to_ir(model)


def test_outputs_that_are_no_tensors_stay(make_model):
    """Classifiers of other libraries return a sequence of maps."""
    model = make_model([("Relu", ["x"], ["y"])], X, ["y"])
    labels = list(range(4))
    model.graph.node.append(
        helper.make_node(
            "ZipMap", ["y"], ["p"], "z", domain="ai.onnx.ml", classlabels_int64s=labels
        )
    )
    probability = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    output = helper.make_value_info("p", helper.make_sequence_type_proto(probability))
    model.graph.output.append(output)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert _outputs(_read(model))[1] == _outputs(model)[1] == [dict.fromkeys(labels, 1.0)] * 2


def test_two_initializers_of_one_name_are_refused(make_model, tmp_path):
    """ONNX Runtime takes the first of them, onnx_ir the last."""
    model = make_model([("MatMul", ["x", "w"], ["y"])], X, ["y"], w=WEIGHT)
    model.graph.initializer.append(numpy_helper.from_array(2 * WEIGHT, "w"))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="2 initializers of the name 'w'"):
        read_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("damage", ["an output twice", "a type that is none"])
def test_what_onnx_ir_refuses_is_named_in_one_sentence(make_model, tmp_path, damage):
    model = make_model([("MatMul", ["x", "w"], ["y"])], X, ["y"], w=WEIGHT)
    if damage == "an output twice":
        model.graph.node.append(model.graph.node[0])
    else:
        model.graph.input[0].type.tensor_type.elem_type = 99
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        ValueError, match=r"ONNX file at .*(redeclared|99 is not a valid)"
    ) as caught:
        read_model(tmp_path / "model.onnx")
    assert len(str(caught.value)) < 800


def test_nothing_is_said_of_a_file_that_is_read(make_model, caplog):
    """ONNX Runtime says what is wrong with it."""
    to_ir(make_model([("MatMul", ["x", "w"], ["y"])], X | {"w": [4, 4]}, ["y"]))
    model = make_model([("Relu", ["x"], ["y"])], X, ["y"])
    model.graph.node[0].input[0] = "nowhere"
    to_ir(model)
    assert not caplog.records
