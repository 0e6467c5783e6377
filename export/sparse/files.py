"""Read and write ONNX models, in one file where protobuf allows it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto

from mfac_compress.export.sparse.graph import subgraphs
from mfac_compress.export.sparse.nodes import DOMAIN

_MOST_BYTES_IN_ONE_FILE = 1_900_000_000  # protobuf's 2 GiB, less what the graph takes


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a plain ONNX file, with its tensors.

    Raises:
        ValueError: If it can not be read, or holds sparse operators already.
    """
    path = os.fspath(path)
    try:
        model = onnx.load(path)
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


def data_files(path: str | os.PathLike[str]) -> set[Path]:
    """The files beside an ONNX file in which its tensors lie; empty where it holds them itself.

    Args:
        path: ONNX file that :func:`read_model` can read.
    """
    path = Path(path)
    graph = onnx.load(path, load_external_data=False).graph
    return {
        path.parent / entry.value
        for tensor in _tensors(graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def write_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model, whole and valid or not at all.

    Args:
        model: Stays as it is.
        path: File, in a folder that exists. Tensors go to ``path`` + ``.data`` only where one file
            would pass 2 GB.
    Raises:
        ValueError: If the ONNX checker refuses it.
    """
    path = Path(path)
    data = f"{path.name}.data"
    with tempfile.TemporaryDirectory(prefix=".sparse-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        _save(model, draft)
        try:
            onnx.checker.check_model(draft)
        except onnx.checker.ValidationError as error:
            raise ValueError(
                f"A model must pass the ONNX checker to be written as {path}. It said: {error}"
            ) from error
        path.with_name(data).unlink(missing_ok=True)  # of a larger model before
        if draft.with_name(data).is_file():
            os.replace(draft.with_name(data), path.with_name(data))
        os.replace(draft, path)


@contextmanager
def written(model: onnx.ModelProto) -> Iterator[Path]:
    """Put a model into a file for a while."""
    with tempfile.TemporaryDirectory(prefix="mfac-sparse-") as folder:
        path = Path(folder) / "model.onnx"
        _save(model, path)
        yield path


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """All tensors of a graph, also those in attributes and in the graphs of its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
        for inner in subgraphs(node):
            yield from _tensors(inner)


def _save(model: onnx.ModelProto, path: Path) -> None:
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= _MOST_BYTES_IN_ONE_FILE:
        onnx.save_model(model, path)
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the tensors out of the model
    onnx.save_model(copy, path, save_as_external_data=True, location=f"{path.name}.data")
