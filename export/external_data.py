"""External data: the files beside an ONNX file with the tensors that are too large for it."""

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from mfac_compress.export.graphs import tensors


def data_files(path: str | os.PathLike[str]) -> set[Path]:
    """Return the external data files of an ONNX file; empty if it contains all its tensors.

    Args:
        path: ONNX file.
    Raises:
        DecodeError: If it is not an ONNX file.
    """
    path = Path(path)
    graph = onnx.load(path, format="protobuf", load_external_data=False).graph
    return {
        path.parent / entry.value
        for tensor in tensors(graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def data_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the external data that we write for an ONNX file.

    Args:
        path: ONNX file, to be written or replaced.
    Returns:
        ``path`` + ``.data``. It does not exist, or belongs to the model that is in ``path`` now.
    Raises:
        ValueError: If another file is there.
    """
    path = Path(path)
    data = path.with_name(f"{path.name}.data")
    if os.path.lexists(data) and data.resolve() not in _parts(path):
        raise ValueError(
            f"{data} must be free for the tensors of {path}, or hold those of the model that is "
            f"there now. It belongs to something else. Move it away, or write {path.name} under "
            "another name."
        )
    return data


def _parts(path: Path) -> set[Path]:
    """Return the data files of the model at a path; none if there is no model."""
    try:
        return {part.resolve() for part in data_files(path)} if path.is_file() else set()
    except DecodeError:
        return set()
