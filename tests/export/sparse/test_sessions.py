"""Files with sparse operators open in one call, and errors are explained."""

import numpy as np
import onnx_ir as ir
import pytest

from mfac_compress.export import kernel_library, sparse_session, write_model
from mfac_compress.export.sparse import sessions


@pytest.fixture
def file(rewritten, make_model, sparse_weight, tmp_path):
    model = make_model([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 12]}, ["y"],
                       w=sparse_weight(12, 4))  # fmt: skip
    write_model(ir.from_proto(rewritten(model).model), tmp_path / "model.sparse.onnx")
    return tmp_path / "model.sparse.onnx"


def test_it_is_a_session_of_onnx_runtime_with_these_options(file):
    session = sparse_session(file, intra_op_num_threads=1, log_severity_level=3)
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.run(None, {"x": np.ones((2, 12), np.float32)})[0].shape == (2, 4)


def test_an_unknown_option_is_named_with_the_known_ones(file):
    with pytest.raises(ValueError, match=r"intra_op_num_threads.*Got thread_count"):
        sparse_session(file, thread_count=1)


def test_a_value_that_an_option_does_not_take_is_named(file):
    with pytest.raises(ValueError, match=r"intra_op_num_threads does not take 'two'"):
        sparse_session(file, intra_op_num_threads="two")


def test_a_missing_and_a_broken_file_have_different_errors(file):
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="ONNX Runtime must be able to load"):
        sparse_session(file)
    with pytest.raises(ValueError, match="Found none"):
        sparse_session(file.with_name("other.onnx"))


def test_a_missing_library_is_reported_first(tmp_path, monkeypatch):
    def missing():
        raise ValueError("The sparse kernels must be built")

    monkeypatch.setattr(sessions, "kernel_library", missing)
    with pytest.raises(ValueError, match="must be built"):
        sparse_session(tmp_path / "none.onnx")


def test_the_library_is_a_file(kernels):
    assert kernel_library().is_file()


@pytest.mark.parametrize(
    "providers",
    [
        "CPUExecutionProvider",
        None,
        [3],
        ["NoSuchExecutionProvider"],
        [("CPUExecutionProvider",)],
        [("CPUExecutionProvider", "options")],
    ],
)
def test_unknown_providers_are_refused(file, providers):
    with pytest.raises(ValueError, match=r"providers must be .*CPUExecutionProvider.* Got "):
        sparse_session(file, providers=providers)


def test_providers_may_have_options(file):
    session = sparse_session(file, providers=[("CPUExecutionProvider", {})])
    assert session.get_providers() == ["CPUExecutionProvider"]
