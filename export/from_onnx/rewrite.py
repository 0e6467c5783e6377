"""Write other numbers into an ONNX file, and change no other byte of it.

Protobuf stores a message as fields: a number with the type of what follows, then that. A tensor's
numbers have a length that does not change, so they are overwritten where they stand. Reading the
file into a message and writing that would move fields that another program put elsewhere.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # in ModelProto, and twice in GraphProto
_OUTPUT, _ATTRIBUTE, _TENSOR = 2, 5, 5  # twice in NodeProto, and in AttributeProto
_FLOATS, _NAME, _RAW = 4, 8, 9  # in TensorProto


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    end: int


def write_floats(content: bytes, tensors: Mapping[str, np.ndarray]) -> bytes:
    """Overwrite float32 tensors that a file itself holds.

    Args:
        content: The file.
        tensors: By the name of an initializer or the output of a Constant node, in the shape that
            the file has.
    Returns:
        A file of the same length.
    Raises:
        ValueError: If a tensor is not there, or has another number of elements.
    """
    places = {name: spans for name, spans in _tensors(content) if name in tensors}
    changed = bytearray(content)
    for name, array in tensors.items():
        data = np.ascontiguousarray(array, dtype="<f4").tobytes()
        spans = places.get(name, [])
        if sum(end - start for start, end in spans) != len(data):
            raise ValueError(f"Tensor {name!r} must have {len(data) // 4:,} float32 in the file.")
        at = 0
        for start, end in spans:
            changed[start:end] = data[at : at + end - start]
            at += end - start
    return bytes(changed)


def embedded(model: onnx.ModelProto) -> set[str]:
    """The tensors that :func:`write_floats` can overwrite, of a model without external data."""
    constants = {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant"
        and node.domain in ("", "ai.onnx")
        and len(node.attribute) == 1
    }
    tensors = {each.name: each for each in model.graph.initializer}
    return {
        name
        for name, tensor in {**constants, **tensors}.items()
        if tensor.data_type == onnx.TensorProto.FLOAT
        and tensor.data_location != onnx.TensorProto.EXTERNAL
        and not tensor.HasField("segment")
    }


def _tensors(content: bytes) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yield the name of each tensor and where its numbers are, in the order of the file."""
    for graph in _fields(content, 0, len(content)):
        if graph.number != _GRAPH or graph.kind != _BYTES:
            continue
        for field in _fields(content, graph.start, graph.end):
            if field.kind == _BYTES and field.number == _INITIALIZER:
                yield _tensor(content, field)
            elif field.kind == _BYTES and field.number == _NODE:
                yield from _constant(content, field)


def _constant(content: bytes, node: _Field) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The tensors in a node's attributes, by the name of the node's output."""
    fields = [*_fields(content, node.start, node.end)]
    outputs = [_text(content, field) for field in fields if field.number == _OUTPUT]
    for attribute in fields:
        if attribute.number == _ATTRIBUTE and len(outputs) == 1:
            for field in _fields(content, attribute.start, attribute.end):
                if field.number == _TENSOR and field.kind == _BYTES:
                    yield outputs[0], _tensor(content, field)[1]


def _tensor(content: bytes, tensor: _Field) -> tuple[str, list[tuple[int, int]]]:
    name, raw, floats = "", [], []
    for field in _fields(content, tensor.start, tensor.end):
        span = (field.start, field.end)
        if field.number == _NAME:
            name = _text(content, field)
        elif field.number == _RAW:
            raw = [span]  # of several, the last counts
        elif field.number == _FLOATS:
            floats.append(span)
    return name, raw or floats


def _text(content: bytes, field: _Field) -> str:
    return content[field.start : field.end].decode(errors="replace")


def _fields(content: bytes, at: int, end: int) -> Iterator[_Field]:
    """The fields of a message that protobuf has read before, so it is whole."""
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if kind == _VARINT:
            start, (_, at) = at, _varint(content, at)
        elif kind == _BYTES:
            length, start = _varint(content, at)
            at = start + length
        elif kind in _FIXED:
            start, at = at, at + _FIXED[kind]
        else:
            raise ValueError("The file has groups, which ONNX has not.")
        yield _Field(key >> 3, kind, start, at)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
