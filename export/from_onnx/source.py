"""The ONNX file that a model came as, and copies of it with other weights."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from mfac_compress.export.external_data import data_path
from mfac_compress.export.from_onnx.rewrite import embedded, write_floats
from mfac_compress.export.graphs import tensors
from mfac_compress.export.sparse.files import read_content

_CHUNK = 2**24


@dataclass(frozen=True, eq=False)
class Source:
    """A file as it was read.

    Args:
        path: Where it was.
        content: Its bytes.
        graph: What they say, with the tensors of its external data, and functions inlined.
        external: SHA-256 of each file of external data, by its path seen from the file's folder.
    """

    path: Path
    content: bytes
    graph: ir.Model
    external: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, content: bytes) -> "Source":
        """Read a file of unknown origin.

        Args:
            path: Where it is, and its external data.
            content: Its bytes.
        Raises:
            ValueError: If it cannot be read; see :func:`read_content`.
        """
        graph = read_content(content, path)
        proto = onnx.load_model_from_string(content)
        places = {location for _, location, _ in _external(proto)}
        return cls(path, content, graph, {place: _digest(path.parent / place) for place in places})

    @property
    def writable(self) -> set[str]:
        """The float32 tensors that :meth:`write` can change, by their names.

        Tensors of external data that have bytes in common are none of them: one cannot change
        without the others.
        """
        proto = onnx.load_model_from_string(self.content)
        beside = {
            tensor.name
            for tensor in proto.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
            and tensor.data_location == TensorProto.EXTERNAL
        }
        return embedded(proto) | (beside - _overlapping(proto))

    def write(self, path: Path, changed: Mapping[str, np.ndarray]) -> None:
        """Write a copy in which some tensors have other values.

        Every other byte stays. Tensors of external data go to ``path`` + ``.data``, which the copy
        names in place of the files that it had.

        Args:
            path: The copy, in a folder that exists. Replaced only by a whole file.
            changed: Float32 tensors by name.
        Raises:
            ValueError: If the external data is no longer what it was, or ``path`` + ``.data``
                belongs to something else.
        """
        data = data_path(path)
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            if self.external:
                self._write_beside(draft, changed)
                os.replace(draft.with_name(data.name), data)
            else:
                draft.write_bytes(write_floats(self.content, changed))
            os.replace(draft, path)
        if not self.external:
            data.unlink(missing_ok=True)  # of another model that was here before

    def _write_beside(self, draft: Path, changed: Mapping[str, np.ndarray]) -> None:
        """Write a file and its external data."""
        proto = onnx.load_model_from_string(self.content)
        data = draft.with_name(f"{draft.name}.data")
        starts = self._copy_data(data)
        inside = dict(changed)
        with data.open("r+b") as file:
            for tensor, location, offset in _external(proto):
                start = starts[location] + offset
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = data.name
                    elif entry.key == "offset":
                        entry.value = str(start)
                if start and not any(entry.key == "offset" for entry in tensor.external_data):
                    tensor.external_data.add(key="offset", value=str(start))
                if tensor.name in inside:
                    file.seek(start)
                    file.write(np.ascontiguousarray(inside.pop(tensor.name), "<f4").tobytes())
        draft.write_bytes(write_floats(proto.SerializeToString(), inside))

    def _copy_data(self, data: Path) -> dict[str, int]:
        """Join the files of external data, and return where each of them starts."""
        starts = {}
        with data.open("wb") as joined:
            for place, digest in sorted(self.external.items()):
                joined.seek(-(-joined.tell() // _ALIGNED) * _ALIGNED)
                starts[place] = joined.tell()
                found = hashlib.sha256()
                for chunk in _chunks(self.path.parent / place):
                    found.update(chunk)
                    joined.write(chunk)
                if found.hexdigest() != digest:
                    raise ValueError(
                        f"The external data of {self.path} must stay what it was when the run "
                        f"began. {place} has changed. Start again."
                    )
        return starts


_ALIGNED = 4096
"""Files of external data start at multiples, as their offsets may be meant to."""


def _external(proto: onnx.ModelProto) -> Iterator[tuple[TensorProto, str, int]]:
    """Yield each tensor of external data with the file and the offset where it is."""
    for tensor in tensors(proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            given = {entry.key: entry.value for entry in tensor.external_data}
            yield tensor, given["location"], int(given.get("offset") or 0)


def _overlapping(proto: onnx.ModelProto) -> set[str]:
    """Names of the tensors of external data that have bytes in common with another."""
    spans = sorted(
        (location, offset, offset + _bytes(tensor), tensor.name)
        for tensor, location, offset in _external(proto)
    )
    found: set[str] = set()
    reached = ("", 0, "")  # file and end of the tensor that goes furthest, and its name
    for location, start, end, name in spans:
        if location == reached[0] and start < reached[1]:
            found |= {name, reached[2]}
        reached = max(reached, (location, end, name))
    return found


def _bytes(tensor: TensorProto) -> int:
    given = {entry.key: entry.value for entry in tensor.external_data}
    return int(given.get("length") or 4 * prod(tensor.dims))


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    for chunk in _chunks(path):
        found.update(chunk)
    return found.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
