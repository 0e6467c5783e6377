"""Models are written atomically, in one file if possible."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mfac_compress.export import replace, write_model
from mfac_compress.export.sparse import files
from mfac_compress.export.sparse.foreign import to_ir

X = {"x": ["n", 12]}


@pytest.fixture
def model(make_model, sparse_weight):
    return make_model([("MatMul", ["x", "w"], ["y"])], X, ["y"], w=sparse_weight(12, 400))


def test_a_model_that_fits_is_one_file(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(replace, "MAX_BYTES_IN_ONE_FILE", 1000)
        write_model(to_ir(model), tmp_path / "model.onnx")  # a larger model before
    assert (tmp_path / "model.onnx.data").is_file()
    write_model(to_ir(model), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("before", [None, b"no model", "model"])
def test_data_of_something_else_is_never_touched(model, tmp_path, before):
    path = tmp_path / "model.onnx"
    if before == "model":
        onnx.save(model, path)
    elif before:
        path.write_bytes(before)
    held = path.read_bytes() if before else None
    (tmp_path / "model.onnx.data").write_bytes(b"of something else")
    with pytest.raises(ValueError, match=r"model\.onnx\.data must be free"):
        write_model(to_ir(model), path)
    assert (tmp_path / "model.onnx.data").read_bytes() == b"of something else"
    assert (path.read_bytes() if path.exists() else None) == held


def test_a_model_that_is_too_large_has_external_data(model, tmp_path, monkeypatch):
    monkeypatch.setattr(replace, "MAX_BYTES_IN_ONE_FILE", 1000)
    before = model.SerializeToString()
    write_model(to_ir(model), tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert model.SerializeToString() == before
    read = files.read_model(tmp_path / "model.onnx")
    assert read.graph.initializers["w"].const_value.tobytes() == model.graph.initializer[0].raw_data


def test_tensors_in_typed_fields_count_and_become_external_too(
    make_model, sparse_weight, tmp_path, monkeypatch
):
    model = make_model([("MatMul", ["x", "w"], ["y"])], X, ["y"], w=sparse_weight(12, 400))
    (tensor,) = model.graph.initializer
    weight = numpy_helper.to_array(tensor)
    tensor.ClearField("raw_data")
    tensor.float_data.extend(weight.ravel())
    monkeypatch.setattr(replace, "MAX_BYTES_IN_ONE_FILE", weight.nbytes - 1)
    write_model(to_ir(model), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 1000
    read = files.read_model(tmp_path / "model.onnx").graph.initializers["w"]
    assert np.array_equal(read.const_value.numpy(), weight)


def test_a_large_file_is_replaced_from_within_its_folder(model, tmp_path, monkeypatch):
    monkeypatch.setattr(replace, "MAX_BYTES_IN_ONE_FILE", 1000)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        write_model(to_ir(model), "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert files.read_model("model.onnx").graph.initializers["w"].const_value.nbytes


def test_a_model_that_is_not_valid_is_not_written(model, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"kept")
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ValueError, match=r"written as .*model\.onnx must be valid"):
        write_model(to_ir(model), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_truncated_or_missing_file_is_named(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    path.write_bytes(path.read_bytes()[:200])
    for broken in (path, tmp_path / "none.onnx"):
        with pytest.raises(ValueError, match=rf"ONNX file at .*{broken.name}"):
            files.read_model(broken)
