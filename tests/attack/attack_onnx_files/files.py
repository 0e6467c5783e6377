"""Files that are none, and data beside them."""

import itertools
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from onnx import TensorProto

from attack_onnx_files import nets
from attack_onnx_files.case import REFUSED, TAKEN, Case, write


def kinds() -> Iterator[Case]:
    """Each once."""
    yield from _no_files()
    yield from _external_data()


def _no_files() -> Iterator[Case]:
    def written(content: bytes, folder: Path) -> Path:
        (folder / "model.onnx").write_bytes(content)
        return folder / "model.onnx"

    def large(size: int, folder: Path) -> Path:
        with open(folder / "model.onnx", "wb") as file:
            file.truncate(size)
        return folder / "model.onnx"

    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "model.onnx")
        return folder / "model.onnx"

    def listening(folder: Path) -> Path:
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("model.onnx")
        finally:
            os.chdir(here)
        return folder / "model.onnx"

    def link(to: str, folder: Path) -> Path:
        (folder / "model.onnx").symlink_to(to)
        return folder / "model.onnx"

    contents = {
        "empty": b"", "text": b"no model", "NULs": bytes(4096), "ones": b"\xff" * 4096,
        "a pickle": b"\x80\x04K\x01.", "a zip": b"PK\x03\x04" + bytes(99), "JSON": b"{}",
        "a group without an end": b"\x0b" * 5000, "groups in groups": b"\x3b" * 100_000,
        "a length beyond the file": b"\x3a\xff\xff\xff\xff\x07",
        "a negative length": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        "only a version": b"\x08\x09",
    }  # fmt: skip
    for name, content in contents.items():
        yield Case(f"no file: {name}", partial(written, content), REFUSED)
    for size in (2**31 - 1, 2**31, 2**33, 2**40):
        yield Case(f"no file: {size} NULs", partial(large, size), REFUSED)
    yield Case("no file: a pipe", pipe, REFUSED)
    yield Case("no file: a socket", listening, REFUSED)
    for to in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/", "model.onnx", "nowhere"):
        yield Case(f"no file: a link to {to}", partial(link, to), REFUSED)


def _external_data() -> Iterator[Case]:
    def make(entries: dict[str, str], dims: list[int], folder: Path) -> Path:
        made = nets.words()
        tensor = made.graph.initializer[0]
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        if dims:
            tensor.dims[:] = dims
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        (folder / "w.bin").write_bytes(raw)
        os.mkfifo(folder / "pipe")
        (folder / "zero").symlink_to("/dev/zero")
        with open(folder / "large", "wb") as file:
            file.truncate(2**42)
        return write(lambda: made, folder)

    yield Case("external data", partial(make, {"location": "w.bin"}, []), TAKEN)
    for location in (
        "", ".", "..", "/dev/zero", "../w.bin", "/etc/passwd", "pipe", "zero", "nowhere", "w.bin/",
        "model.onnx/..", "a\0b", "w" * 5000, "C:\\w.bin", "\\\\host\\w.bin", "file:///w.bin",
    ):  # fmt: skip
        yield Case(
            f"external data in {location[:20]!r}",
            partial(make, {"location": location}, []),
            REFUSED,
        )
    for offset, length in itertools.product(
        ("0", "-1", "4", "384", str(2**63), str(2**64), "x", "1e3", "٣"), (None, "0", "-4", "384")
    ):
        if (offset, length) in (("0", None), ("0", "384")):
            continue
        entries = {"location": "w.bin", "offset": offset} | ({"length": length} if length else {})
        yield Case(f"external data at {offset}, {length}", partial(make, entries, []), REFUSED)
    yield Case(
        "external data of 4 TB",
        partial(make, {"location": "large"}, [2**20, 2**20]), REFUSED,
    )  # fmt: skip
    for dims in ([0, 0], [-1, 8], [2**62, 2**62], [8, 13], [96]):
        yield Case(f"external data of {dims}", partial(make, {"location": "w.bin"}, dims), REFUSED)
