"""Files that are models, or look like it, but not of PyTorch: saying what they are."""

import contextlib
from pathlib import Path

import onnx

_BEGINNINGS = {
    b"\x89HDF\r\n": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull",
    b"<!DOCTYPE": "a web page, so the download went wrong",
    b"<html": "a web page, so the download went wrong",
}


def foreign_kind(path: Path, content: bytes) -> str | None:
    """Say what a file is, where it is known not to be a model of PyTorch.

    Args:
        path: The file; its suffix counts.
        content: Its bytes.
    Returns:
        For example ``an ONNX file``; None for what may be PyTorch's.
    """
    if is_onnx(path, content):
        return "an ONNX file"
    if path.suffix.lower() == ".npz":
        return "a file of NumPy arrays"
    return next((kind for start, kind in _BEGINNINGS.items() if content.startswith(start)), None)


def is_onnx(path: Path, content: bytes) -> bool:
    """Whether a file is to be read as ONNX.

    Args:
        path: The file; its suffix counts.
        content: Its bytes.
    """
    if path.suffix.lower() == ".onnx":
        return True
    if not content.startswith(b"\x08"):  # the first field of an ONNX file: its version
        return False
    with contextlib.suppress(Exception):
        model = onnx.load_model_from_string(content)
        return bool(model.ir_version and model.graph.node)
    return False
