"""The files beside an ONNX file, in which tensors lie that are too large for it."""

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from mfac_compress.export.graphs import tensors

MOST_BYTES_IN_ONE_FILE = 1_900_000_000
"""Of tensors: a protobuf file ends at 2 GiB, and the graph needs some of that."""


def data_files(path: str | os.PathLike[str]) -> set[Path]:
    """The files in which the tensors of an ONNX file lie; empty where it holds them itself.

    Args:
        path: ONNX file.
    Raises:
        DecodeError: If it is none.
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
    """Where we put tensors that are too large for a file.

    Args:
        path: ONNX file, to be written or replaced.
    Returns:
        ``path`` + ``.data``. Nothing is there, or data of the model that is in ``path`` now.
    Raises:
        ValueError: If something else is there.
    """
    path = Path(path)
    data = path.with_name(f"{path.name}.data")
    if os.path.lexists(data) and data.resolve() not in _parts(path):
        raise ValueError(
            f"{data} must be free for the tensors of {path}, or hold those of the model that is "
            f"there now. What is there is of something else. Move it away, or write {path.name} "
            "under another name."
        )
    return data


def _parts(path: Path) -> set[Path]:
    """Data files of what is in a place now: a model, something else, or nothing."""
    try:
        return {part.resolve() for part in data_files(path)} if path.is_file() else set()
    except DecodeError:
        return set()
