"""Models are written whole or not at all, in one file where that is possible."""

import onnx
import pytest

from mfac_compress.export import write_model
from mfac_compress.export.sparse import files

X = {"x": ["n", 12]}


@pytest.fixture
def model(make_model, sparse_weight):
    return make_model([("MatMul", ["x", "w"], ["y"])], X, ["y"], w=sparse_weight(12, 400))


def test_what_one_file_holds_is_one_file(model, tmp_path):
    (tmp_path / "model.onnx.data").write_bytes(b"of a larger model before")
    write_model(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_what_is_too_large_has_its_tensors_beside_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_BYTES_IN_ONE_FILE", 1000)
    before = model.SerializeToString()
    write_model(model, tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert model.SerializeToString() == before
    read = files.read_model(tmp_path / "model.onnx")
    assert read.graph.initializer[0].raw_data == model.graph.initializer[0].raw_data


def test_a_model_that_is_not_valid_is_not_written(model, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"kept")
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ValueError, match="ONNX checker"):
        write_model(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_cut_off_or_not_there_is_named(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    path.write_bytes(path.read_bytes()[:200])
    for broken in (path, tmp_path / "none.onnx"):
        with pytest.raises(ValueError, match=rf"ONNX file at .*{broken.name}"):
            files.read_model(broken)
