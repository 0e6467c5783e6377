"""Random inputs have the types and shapes of the file."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mfac_compress.export import RandomInputs, Workload
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.graph import needed_inputs


def _file(folder, **inputs):
    """Inputs as (type, shape), all returned."""
    infos = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    nodes = [helper.make_node("Identity", [n], [f"{n}_out"]) for n in inputs]
    outputs = [helper.make_tensor_value_info(f"{n}_out", t, s) for n, (t, s) in inputs.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", infos, outputs))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_types_and_the_open_batch(tmp_path):
    path = _file(
        tmp_path,
        image=(TensorProto.FLOAT, ["n", 3, 4]),
        ids=(TensorProto.INT64, ["n", 5]),
        mask=(TensorProto.BOOL, ["n", 5]),
        half=(TensorProto.FLOAT16, [2, 2]),
    )
    made = RandomInputs(path)(Workload(7, 1))
    assert {name: array.shape for name, array in made.items()} == {
        "image": (7, 3, 4), "ids": (7, 5), "mask": (7, 5), "half": (2, 2),
    }  # fmt: skip
    assert [made[name].dtype for name in ("image", "ids", "mask", "half")] == [
        np.float32, np.int64, np.bool_, np.float16,
    ]  # fmt: skip
    assert set(made["ids"].ravel()) <= {0, 1}


def test_other_open_axes_must_be_given(tmp_path):
    path = _file(tmp_path, ids=(TensorProto.INT64, ["n", "length"]))
    with pytest.raises(ValueError, match=r"ids.*length.*for example ids=1,128"):
        RandomInputs(path)
    assert RandomInputs(path, {"ids": (1, 32)})(Workload(4, 1))["ids"].shape == (4, 32)


@pytest.mark.parametrize("shape", [(1,), (1, 2, 3), (1, 9), (1, -4)])
def test_a_shape_that_does_not_fit_is_refused(tmp_path, shape):
    path = _file(tmp_path, x=(TensorProto.FLOAT, ["n", 8]))
    with pytest.raises(ValueError, match="must fit"):
        RandomInputs(path, {"x": shape})


def test_an_input_of_any_number_of_axes_must_be_given(tmp_path):
    path = _file(tmp_path, x=(TensorProto.FLOAT, None))
    with pytest.raises(ValueError, match=r"input x.*how many axes.*for example x=1,128"):
        RandomInputs(path)
    inputs = RandomInputs(path, {"x": (2, 8)})
    assert (inputs.fixed_batch, inputs.given_batches) == (None, {2})
    assert inputs(Workload(4, 1))["x"].shape == (4, 8)


def test_an_unknown_name_is_refused(tmp_path):
    path = _file(tmp_path, x=(TensorProto.FLOAT, ["n", 8]))
    with pytest.raises(ValueError, match=r"inputs x\. Got y"):
        RandomInputs(path, {"y": (1, 8)})


def test_a_fixed_batch_is_the_only_one(tmp_path):
    inputs = RandomInputs(_file(tmp_path, x=(TensorProto.FLOAT, [2, 8])))
    assert inputs.fixed_batch == 2
    with pytest.raises(ValueError, match="must be 2"):
        inputs(Workload(1, 1))


def test_inputs_that_are_not_numbers_are_refused(tmp_path):
    path = _file(tmp_path, words=(TensorProto.STRING, ["n"]))
    with pytest.raises(ValueError, match="tensor of numbers"):
        RandomInputs(path)


def test_initializers_that_are_listed_as_inputs_need_no_inputs(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    listed = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("dense", "sparse")
    ]
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", "dense", "sparse"], ["y"])],
        "g",
        [*listed, x],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("dense", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])],
        sparse_initializer=[helper.make_sparse_tensor(values, places, [3])],
    )
    model = helper.make_model(graph)
    onnx.save(model, tmp_path / "model.onnx")
    assert [value.name for value in needed_inputs(to_ir(model))] == ["x"]
    assert RandomInputs(tmp_path / "model.onnx")(Workload(2, 1)).keys() == {"x"}


def test_an_axis_of_minus_one_is_open(tmp_path):
    path = _file(tmp_path, x=(TensorProto.FLOAT, [-1, 3, -1]))
    with pytest.raises(ValueError, match=r"\['\?', 3, '\?'\] open.*for example x=1,3,128"):
        RandomInputs(path)
    inputs = RandomInputs(path, {"x": (1, 3, 128)})
    assert inputs.fixed_batch is None
    assert inputs(Workload(5, 1))["x"].shape == (5, 3, 128)
