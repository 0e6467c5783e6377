import numpy as np
import onnx
import pytest
import zstandard
from onnx import helper, numpy_helper

from mfac_compress.export import Variant, compare_size


def save(path, weights, external=False):
    """Write a file of one MatMul."""
    n, k = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, n])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, k])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, path, save_as_external_data=external, location="w.bin")
    return path


def file_size(path):
    return compare_size(Variant("one", path), [])["one"]


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def test_one_file_is_measured_as_it_is_and_compressed(tmp_path, weights):
    path = save(tmp_path / "m.onnx", weights)
    size = file_size(path)
    content = path.read_bytes()
    assert size.raw_bytes == len(content)
    packed = len(zstandard.ZstdCompressor(level=9).compress(content))
    assert size.compressed_bytes == pytest.approx(packed, abs=16)  # frame headers differ


def test_zeros_shrink_the_compressed_file_only(tmp_path, weights):
    zeros = np.random.default_rng(1).random(weights.shape) < 0.9
    dense = save(tmp_path / "dense.onnx", weights)
    sparse = save(tmp_path / "sparse.onnx", np.where(zeros, np.float32(0), weights))
    sizes = compare_size(Variant("dense", dense), [Variant("sparse", sparse)])
    assert sizes["sparse"].raw_bytes == sizes["dense"].raw_bytes
    ratio = sizes["sparse"].compressed_bytes / sizes["dense"].compressed_bytes
    assert sizes["sparse"].ratio == ratio < 0.3
    assert sizes["dense"].ratio == 1


def test_a_library_is_counted_apart(tmp_path, weights):
    path, library = save(tmp_path / "m.onnx", weights), tmp_path / "kernels.so"
    library.write_bytes(b"0" * 1000)
    sizes = compare_size(Variant("plain", path), [Variant("kernels", path, library)])
    assert (sizes["plain"].library_bytes, sizes["kernels"].library_bytes) == (0, 1000)
    assert sizes["kernels"].raw_bytes == sizes["plain"].raw_bytes


def test_external_data_counts(tmp_path, weights):
    path = save(tmp_path / "m.onnx", weights, external=True)
    size = file_size(path)
    assert size.raw_bytes == path.stat().st_size + weights.nbytes
    assert size.compressed_bytes > 0.8 * weights.nbytes


@pytest.mark.parametrize("content", [None, b"not a protobuf"])
def test_a_file_that_is_not_onnx_is_reported(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="There must be an ONNX file"):
        file_size(path)
