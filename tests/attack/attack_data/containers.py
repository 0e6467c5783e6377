"""Archives that are damaged, or in which more is packed than they seem to hold; odd paths."""

import os
import random
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import as_bytes, good, npy, write_good, write_members
from .case import EITHER, REFUSED, Case, arrays_section

_CENTRAL = b"PK\x01\x02"
_X, _Y = map(as_bytes, good())


def _patched(path: Path, offset: int, value: bytes) -> None:
    """Change the first entry of an archive's directory."""
    content = bytearray(path.read_bytes())
    start = content.index(_CENTRAL) + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)


def _zeros(path: Path, count: int, compression: int) -> None:
    shape = (count // 1000, 1000)
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", compression) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(npy(header))
            for _ in range(0, count, 10**6):
                member.write(bytes(10**6))
        archive.writestr("y.npy", as_bytes(np.zeros(count // 1000)))


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x.npy", "x", "y.npy"):
            archive.writestr(name, _Y if name == "y.npy" else _X)


def _socket(path: Path) -> None:
    # Its name is too long for where tests often run, unless it is relative.
    path.unlink(missing_ok=True)
    before = os.getcwd()
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(before)


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(20 << 30)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "no bytes": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("no archive"),
    "a single array": lambda p: p.write_bytes(_X),
    "20 GB of nothing": _sparse,
    "an end without a directory": lambda p: p.write_bytes(b"PK\x05\x06" + bytes(18)),
    "a directory of 4 GB": lambda p: p.write_bytes(
        b"PK\x05\x06" + bytes(8) + struct.pack("<II", 2**32 - 1, 0) + bytes(2)
    ),
    "an empty archive": lambda p: write_members(p, {}),
    "members that are no arrays": lambda p: write_members(p, {"x": b"text", "y": b"more"}),
    "x that is no array": lambda p: write_members(p, {"x.npy": b"text", "y.npy": _Y}),
    "arrays without a suffix": lambda p: write_members(p, {"x": _X[:-1], "y": _Y}),
    "a folder for x": lambda p: write_members(p, {"x.npy/": b"", "y.npy": _Y}),
    "x in a folder": lambda p: write_members(p, {"a/x.npy": _X, "y.npy": _Y}),
    "10,000 members": lambda p: write_members(p, {f"{i}.npy": b"" for i in range(10000)}),
    "names with escapes": lambda p: write_members(p, {"\x1b[31m\n\x07.npy": _X}),
    "names of 60,000 characters": lambda p: write_members(p, {"a" * 60000: _X}),
    "x twice": _twice,
    "another type of compression": lambda p: write_members(p, {"x.npy": _X, "y.npy": _Y}, 12),
    "compressed by LZMA": lambda p: write_members(p, {"x.npy": _X, "y.npy": _Y}, 14),
    "zeros in 1000th of their size": lambda p: _zeros(p, 3 * 10**8, zipfile.ZIP_DEFLATED),
    "zeros by bzip2": lambda p: _zeros(p, 3 * 10**7, zipfile.ZIP_BZIP2),
    "a pipe": _fifo,
    "a socket": _socket,
    "a link to a device": lambda p: _link(p, "/dev/zero"),
    "a link to a terminal": lambda p: _link(p, "/dev/tty"),
    "a link to memory": lambda p: _link(p, "/proc/self/mem"),
    "a link to itself": lambda p: _link(p, p.name),
    "a link to nothing": lambda p: _link(p, "nowhere"),
    "a folder without arrays": lambda p: (p.unlink(), p.mkdir()),
}

PATCHES = {
    "encrypted": (8, b"\x01\x00"),
    "an unknown compression": (10, b"\x63\x00"),
    "said to be deflated": (10, b"\x08\x00"),
    "another checksum": (16, b"\x00\x00\x00\x00"),
    "a packed size of 0": (20, bytes(4)),
    "a packed size of 4 GB": (20, b"\xfe\xff\xff\xff"),
    "a size of 0": (24, bytes(4)),
    "a size of 4 GB": (24, b"\xfe\xff\xff\xff"),
    "a size too small": (24, b"\x40\x00\x00\x00"),
    "a name beyond the end": (28, b"\xff\xff"),
    "a place beyond the end": (42, b"\xfe\xff\xff\x7f"),
    "a place before": (42, b"\x01\x00\x00\x00"),
}

PATHS = [
    *(
        "",
        ".",
        "/",
        "~",
        "~nobody-of-this-name/a",
        "\0",
        "a\0b",
        "a" * 300,
        "a/" * 5000,
        "x" * 10000,
    ),
    *("/dev/zero", "/dev/stdin", "/dev/full", "/proc/self/mem", "/proc/kmsg", "/sys", "../" * 500),
    *("\x1b[2J", "a\nb", "\ud800", "\udcff", "con:", "file:///etc/passwd", "calibration.npz/"),
]

ROWS = [[0, 0], [3, 1], [0, 5], [-1, 2], [0, 2**63], [10**30, 10**31], [0], [0, 1, 2], [0.5, 2]]


def _written(folder: Path, writer: Callable[[Path], Any]) -> dict[str, Any]:
    write_good(folder)
    writer(folder / "validation.npz")
    return arrays_section()


def _mapped(folder: Path, writer: Callable[[Path], Any], name: str) -> dict[str, Any]:
    write_good(folder)
    (folder / "npy").mkdir()
    for other, content in (("x", _X), ("y", _Y)):
        (folder / "npy" / f"{other}.npy").write_bytes(content)
    writer(folder / "npy" / f"{name}.npy")
    section = arrays_section()
    section["splits"]["validation"]["path"] = "npy"
    return section


def _with(folder: Path, **split: Any) -> dict[str, Any]:
    write_good(folder)
    section = arrays_section()
    section["splits"]["validation"].update(split)
    return section


def kinds() -> Iterator[Case]:
    """All kinds, each once."""
    for name, writer in WRITERS.items():
        yield Case(f"archive: {name}", lambda f, w=writer: _written(f, w))
    for name in ("a pipe", "a socket", "a link to a device", "a link to itself", "text"):
        for array in ("x", "y"):
            yield Case(f"{array}.npy: {name}", lambda f, n=name, a=array: _mapped(f, WRITERS[n], a))
    for name, (offset, value) in PATCHES.items():
        yield Case(
            f"directory: {name}",
            lambda f, o=offset, v=value: _written(f, lambda p: _patched(p, o, v)),
            # The numbers and their checksum agree in spite of it.
            EITHER if name == "a packed size of 4 GB" else REFUSED,
        )
    for path in PATHS:
        yield Case(f"path: {path[:20]!r}", lambda f, p=path: _with(f, path=p))
    for rows in ROWS:
        yield Case(f"rows: {rows}", lambda f, r=rows: _with(f, rows=r))
    for name in ("", "\0", "x" * 70000, "../x", "/etc/passwd", "\ud800", "x/y"):
        yield Case(f"array named {name[:10]!r}", lambda f, n=name: {**_with(f), "x": n})


def damaged(seed: int) -> Case:
    """An archive or a folder of arrays with some bytes changed, cut or doubled."""
    return Case(f"damaged archive {seed}", lambda f: _damage(f, seed), EITHER)


def _damage(folder: Path, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    write_good(folder)
    if draw.random() < 0.3:
        section = _mapped(folder, lambda p: None, "x")
        spoil(folder / "npy" / draw.choice(["x.npy", "y.npy"]), draw)
        return section
    if draw.random() < 0.5:
        x, y = good(7, rows=50)
        np.savez_compressed(folder / "validation.npz", x=x, y=y)
    spoil(folder / "validation.npz", draw)
    return arrays_section()


def spoil(path: Path, draw: random.Random) -> None:
    """Change a file as bad disks and bad intentions do."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 1, 3, 10])):
        at = draw.randrange(max(1, len(content)))
        how = draw.choice(["flip", "flip", "byte", "cut", "drop", "double", "number", "swap"])
        end = at + draw.choice([1, 4, 30])
        if how == "flip" and content:
            content[at] ^= 1 << draw.randrange(8)
        elif how == "byte" and content:
            content[at] = draw.choice([0, 1, 127, 128, 255])
        elif how == "cut":
            del content[at:]
        elif how == "drop":
            del content[at:end]
        elif how == "double":
            content[at:at] = content[at:end]
        elif how == "number":
            number = draw.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
            content[at : at + 4] = struct.pack(draw.choice("<>") + "I", number)
        elif how == "swap":
            other = draw.randrange(max(1, len(content)))
            content[at : at + 4], content[other : other + 4] = (
                content[other : other + 4],
                content[at : at + 4],
            )
    path.write_bytes(content)
