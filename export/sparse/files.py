"""Read and write ONNX models, in one file if protobuf's limit allows it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, set_external_data

from mfac_compress.export.external_data import MAX_BYTES_IN_ONE_FILE
from mfac_compress.export.graphs import nested, tensors
from mfac_compress.export.replace import replace_model
from mfac_compress.export.session import open_session
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.limits import check_external_data, check_file, check_functions
from mfac_compress.export.sparse.nodes import DOMAIN

_MIN_BYTES_BESIDE = 1024


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file without sparse operators, with its tensors.

    Raises:
        ValueError: If it cannot be read, is too large when its functions are inlined, or has sparse
            operators already.
    """
    path = Path(path)
    try:
        check_file(path)
        model = onnx.load(path, format="protobuf", load_external_data=False)
        check_functions(model)
        check_external_data(model, path.parent)
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise ValueError(
            f"There must be an ONNX file at {path}, whole and with its external data files beside "
            f"it. {_words(error)}"
        ) from error
    if has_sparse_operators(model):
        raise ValueError(
            f"{path} must be a plain ONNX file. It has sparse operators already. Give the "
            "model.onnx that it was made from."
        )
    return model


def _words(error: Exception) -> str:
    return (
        str(error)
        if type(error) is ValueError
        else f"Reading it failed with {type(error).__name__}: {error}"
    )


def write_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model atomically, once ONNX Runtime has loaded it.

    Args:
        model: Not changed.
        path: File, in a folder that exists. Tensors go to ``path`` + ``.data`` only if one file
            would exceed 2 GB.
    Raises:
        ValueError: If ONNX Runtime cannot load it, or ``path`` + ``.data`` belongs to something
            else.
    """
    library = kernel_library() if has_sparse_operators(model) else None

    def check(draft: Path) -> None:
        try:
            open_session(draft, library=library)
        except ValueError as error:
            raise ValueError(f"The model to be written as {path} must be valid. {error}") from error

    replace_model(Path(path), partial(_save, model), check)


def has_sparse_operators(model: onnx.ModelProto) -> bool:
    """Whether a model needs the sparse kernels.

    Its nodes decide: ONNX Runtime writes every domain that it knows into files that it optimises.
    """
    return any(node.domain == DOMAIN for graph in nested(model.graph) for node in graph.node)


@contextmanager
def temporary_file(model: onnx.ModelProto) -> Iterator[Path]:
    """Write a model to a temporary file, removed at the end of the ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="mfac-sparse-") as folder:
        path = Path(folder) / "model.onnx"
        _save(model, path)
        yield path


def _save(model: onnx.ModelProto, path: Path) -> None:
    if sum(map(_bytes_of, tensors(model.graph))) > MAX_BYTES_IN_ONE_FILE:
        model = _with_external_data(model, f"{path.name}.data")
    onnx.save_model(model, path, format="protobuf")


def _bytes_of(tensor: TensorProto) -> int:
    """Return a tensor's size in a file; its numbers may be in typed fields."""
    return len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()


def _with_external_data(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """Return a copy whose large initializers are saved as external data."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in (tensor for graph in nested(copy.graph) for tensor in graph.initializer):
        if _bytes_of(tensor) < _MIN_BYTES_BESIDE:
            continue
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        set_external_data(tensor, location)
    return copy
