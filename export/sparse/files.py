"""Read and write ONNX models, in one file where protobuf allows it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import set_external_data

from mfac_compress.export.external_data import MOST_BYTES_IN_ONE_FILE
from mfac_compress.export.graphs import nested, tensors
from mfac_compress.export.replace import replace_model
from mfac_compress.export.sparse.nodes import DOMAIN

_LEAST_BYTES_BESIDE = 1024


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a plain ONNX file, with its tensors.

    Raises:
        ValueError: If it can not be read, or holds sparse operators already.
    """
    path = os.fspath(path)
    try:
        model = onnx.load(path, format="protobuf")
    except Exception as error:
        raise ValueError(
            f"There must be an ONNX file at {path}, whole and with its external data "
            f"files. Reading it failed with {type(error).__name__}: {error}"
        ) from error
    if any(imported.domain == DOMAIN for imported in model.opset_import):
        raise ValueError(
            f"{path} must be a plain ONNX file. It holds sparse operators already. Give the "
            "model.onnx that it was made from."
        )
    return model


def write_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model, whole and valid or not at all.

    Args:
        model: Stays as it is.
        path: File, in a folder that exists. Tensors go to ``path`` + ``.data`` only where one file
            would pass 2 GB.
    Raises:
        ValueError: If the ONNX checker refuses it, or ``path`` + ``.data`` is taken by something
            else.
    """
    try:
        replace_model(Path(path), partial(_save, model))
    except onnx.checker.ValidationError as error:
        raise ValueError(
            f"A model must pass the ONNX checker to be written as {path}. It said: {error}"
        ) from error


@contextmanager
def written(model: onnx.ModelProto) -> Iterator[Path]:
    """Put a model into a file for a while."""
    with tempfile.TemporaryDirectory(prefix="mfac-sparse-") as folder:
        path = Path(folder) / "model.onnx"
        _save(model, path)
        yield path


def _save(model: onnx.ModelProto, path: Path) -> None:
    if sum(map(_bytes_of, tensors(model.graph))) > MOST_BYTES_IN_ONE_FILE:
        model = _beside(model, f"{path.name}.data")
    onnx.save_model(model, path, format="protobuf")


def _bytes_of(tensor: TensorProto) -> int:
    """What it takes in a file, but for its name and shape; the numbers may lie in typed fields."""
    return len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()


def _beside(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """A copy whose large initializers go to another file when it is saved."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in (tensor for graph in nested(copy.graph) for tensor in graph.initializer):
        if _bytes_of(tensor) < _LEAST_BYTES_BESIDE:
            continue
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        set_external_data(tensor, location)
    return copy
