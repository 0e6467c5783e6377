"""Read and write ONNX models."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_model

from mfac_compress.export.replace import replace_model, save
from mfac_compress.export.session import open_session
from mfac_compress.export.sparse.foreign import inline_functions, to_ir
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.limits import check_external_data, check_file, check_functions
from mfac_compress.export.sparse.nodes import DOMAIN


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file without sparse operators, with its tensors.

    Functions are inlined where they are called, as ONNX Runtime does.

    Raises:
        ValueError: If it cannot be read, is too large when its functions are inlined, or has sparse
            operators already.
    """
    path = Path(path)
    try:
        check_file(path)
        content = path.read_bytes()
    except Exception as error:
        raise _unreadable(path, error) from error
    return read_content(content, path)


def read_content(content: bytes, path: Path) -> ir.Model:
    """Do all of :func:`read_model` once the file is in memory.

    Args:
        content: The file.
        path: Where it is, and its external data.
    Raises:
        ValueError: As :func:`read_model`.
    """
    try:
        # Checked as protobuf reads it, before onnx_ir trusts it.
        proto = onnx.load_model_from_string(content)
        check_functions(proto)
        check_external_data(proto, path.parent)
        load_external_data_for_model(proto, str(path.parent))
        model = to_ir(inline_functions(proto))
    except Exception as error:
        raise _unreadable(path, error) from error
    if has_sparse_operators(model):
        raise ValueError(
            f"{path} must be a plain ONNX file. It has sparse operators already. Give the "
            "model.onnx that it was made from."
        )
    return model


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"There must be an ONNX file at {path}, whole and with its external data files beside it. "
        f"{_words(error)}"
    )


def _words(error: BaseException) -> str:
    while isinstance(error, ir.serde.SerdeError):  # these quote whole nodes
        error = error.__cause__
    return (
        str(error)
        if type(error) is ValueError
        else f"Reading it failed with {type(error).__name__}: {error}"
    )


def write_model(model: ir.Model, path: str | os.PathLike[str]) -> None:
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

    replace_model(model, Path(path), check)


def has_sparse_operators(model: ir.Model) -> bool:
    """Whether a model needs the sparse kernels.

    Its nodes decide: ONNX Runtime writes every domain that it knows into files that it optimises.
    """
    return any(node.domain == DOMAIN for node in model.graph.all_nodes())


@contextmanager
def temporary_file(model: ir.Model) -> Iterator[Path]:
    """Write a model to a temporary file, removed at the end of the ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="mfac-sparse-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        yield path
