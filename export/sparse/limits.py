"""Checks of a file before it is read into memory or passed to ONNX Runtime."""

import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import psutil
from onnx import TensorProto

from mfac_compress.export.graphs import subgraphs, tensors

_MAX_BYTES = 2**31 - 1
"""Protobuf's own limit."""
MAX_NODES = 200_000
"""Limit with all functions inlined, as ONNX Runtime does when it loads a file."""


def check_file(path: Path) -> None:
    """Refuse what is not a regular file, or is too large for an ONNX file.

    Raises:
        ValueError: If the path is not such a file. OSError if it does not exist.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is a folder, a device, a pipe or the like.")
    if found.st_size > _MAX_BYTES:
        raise ValueError(
            f"{path} has {found.st_size:,} bytes, and an ONNX file has at most {_MAX_BYTES:,}. "
            "A larger model has its tensors in a file of external data."
        )


def check_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Refuse external data that is not completely in files beside the model.

    Args:
        model: Read without its external data.
        folder: The folder of its file.
    Raises:
        ValueError: If a tensor is incomplete or outside the folder; the message names it.
    """
    total = 0
    for tensor in _all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            total += _check_tensor(tensor, folder)
    available = psutil.virtual_memory().available
    if total > available:
        raise ValueError(
            f"Its tensors have {total:,} bytes, and {available:,} bytes of memory are free."
        )


def check_functions(model: onnx.ModelProto) -> None:
    """Refuse recursive functions, and functions that are too large when inlined.

    Raises:
        ValueError: If there are any; the message names a function, or the number of nodes.
    """
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    counts: dict[tuple[str, str, str], int | None] = {}

    def count(nodes: Iterator[onnx.NodeProto]) -> int:
        called = [(node.domain, node.op_type, node.overload) for node in nodes]
        return sum(count_of(key) if key in functions else 1 for key in called)

    def count_of(key: tuple[str, str, str]) -> int:
        if key not in counts:
            counts[key] = None
            counts[key] = max(1, count(_nodes(functions[key].node)))
        if counts[key] is None:
            raise ValueError(f"Its function {key[1]} of {key[0]!r} calls itself.")
        return counts[key]

    try:
        total = count(_nodes(model.graph.node))
    except RecursionError:
        raise ValueError("Its functions call each other too deeply.") from None
    if total > MAX_NODES:
        raise ValueError(
            f"It has {total:,} nodes once its functions are inlined, and at most {MAX_NODES:,} are "
            "accepted."
        )


def _nodes(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and the nodes of their subgraphs, at any depth."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _nodes(graph.node)


def _all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from tensors(model.graph)
    for function in model.functions:
        yield from tensors(onnx.GraphProto(node=function.node))


def _check_tensor(tensor: TensorProto, folder: Path) -> int:
    """Check one tensor's external data and return its size in bytes."""
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    what = f"The external data of tensor {tensor.name!r}"
    for path in (PurePosixPath(location), PureWindowsPath(location)):
        if not location or path.anchor or ".." in path.parts:
            raise ValueError(f"{what} must be in the folder of the model. Got {location!r}.")
    try:
        found = (folder / location).stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise ValueError(f"{what} must be in the file {location!r}. {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{what} must be in a file. {location!r} is a device, a pipe or the like.")
    offset = _number(given.get("offset", "0"), what)
    length = _number(given.get("length") or str(max(0, found.st_size - offset)), what)
    if offset + length > found.st_size:
        raise ValueError(
            f"{what} must lie in {location!r}, which has {found.st_size:,} bytes. Got {length:,} "
            f"bytes from offset {offset:,}."
        )
    bits = _bits(tensor.data_type)
    if bits is not None and length < -(-prod(tensor.dims) * bits // 8):
        raise ValueError(f"{what} must have {list(tensor.dims)} numbers. Got {length:,} bytes.")
    return length


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"{what} must have an offset and length in bytes. Got {text[:40]!r}.")
    return int(text)


def _bits(kind: int) -> int | None:
    """Return the bits of one element; None if its type does not determine them."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    except (KeyError, ValueError):
        return None
    name = TensorProto.DataType.Name(kind)
    if name.endswith("INT4") or name.startswith("FLOAT4"):
        return 4
    if name.endswith("INT2"):
        return 2
    return None if dtype.kind == "O" else 8 * dtype.itemsize
