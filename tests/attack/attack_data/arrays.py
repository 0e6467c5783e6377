"""Arrays whose headers lie or nest, of types and values that are hard to take."""

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .case import EITHER, LOADED, REFUSED, Case, arrays_section

_GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def npy(header: str | bytes, numbers: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with any header."""
    text = header.encode("latin1") if isinstance(header, str) else header
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + numbers


def good(seed: int = 0, rows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and classes that can be used."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, 3)).astype("f4"), draw.integers(0, 3, rows)


def write_good(folder: Path) -> None:
    """``calibration.npz`` and ``validation.npz`` that share nothing."""
    for seed, name in enumerate(("calibration", "validation")):
        x, y = good(seed)
        np.savez(folder / f"{name}.npz", x=x, y=y)


def write_members(path: Path, members: dict[str, bytes], compression: int = 0) -> None:
    """An .npz of any members."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def as_bytes(array: np.ndarray) -> bytes:
    """A .npy file of an array."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _descr(kind: str) -> str:
    return _GOOD.replace("'<f4'", kind)


def _shape(shape: str) -> str:
    return _GOOD.replace("(2, 3)", shape)


HEADERS = {
    "nothing": "",
    "no literal": "import os",
    "a call": "{'descr': __import__('os').system('true')}",
    "a set": "{1, 2}",
    "no dictionary": "[1]",
    "nested parentheses": "(" * 9000,
    "nested lists": "[" * 4000 + "]" * 4000,
    "nested shape": _shape("(" * 90 + "1" + ",)" * 90),
    "nested signs": "-" * 9500 + "1",
    "nested sums": "1" + "+1" * 4500,
    "nested dictionaries": "{1:" * 90 + "1" + "}" * 90,
    "nested negations": "not " * 2000 + "1",
    "nested attributes": "a" + ".a" * 4500,
    "digits": _shape(f"({'9' * 9000},)"),
    "more digits than Python converts": _shape(f"({'9' * 4400}, 1)"),
    "hex digits": _shape(f"(0x{'f' * 9000},)"),
    "an open string": "{'descr': '",
    "an open bracket, as of Python 2": "{'shape': (2L, 3L",
    "integers of Python 2": _shape("(2L, 3L)"),
    "not closed": _GOOD[:-3],
    "null bytes": "\0" * 64,
    "high bytes": "\xff" * 64,
    "a tab bomb": "\t" * 9000 + "1",
    "indents": "\n".join(" " * i + "(" for i in range(120)),
    "missing keys": "{'descr': '<f4'}",
    "more keys": _GOOD[:-1] + "'more': 1}",
    "unhashable keys": "{[]: 1}",
    "numbers for keys": "{1: 2, 'descr': '<f4'}",
    "no tuple": _shape("[2, 3]"),
    "a number for a shape": _shape("6"),
    "10^12 rows": _shape("(1000000000000, 3)"),
    "2^63 rows": _shape("(9223372036854775808, 1)"),
    "2^64 numbers": _shape("(4294967296, 4294967296)"),
    "rows that overflow to few": _shape("(4611686018427387905, 4)"),
    "rows below zero": _shape("(-1, 3)"),
    "two axes below zero": _shape("(-2, -3)"),
    "true rows": _shape("(True, 6)"),
    "rows of floats": _shape("(2.0, 3)"),
    "no rows": _shape("(0, 3)"),
    "no numbers": _shape("(2, 0)"),
    "no numbers and 10^18 rows": _shape("(1000000000000000000, 0)"),
    "no axes": _shape("()"),
    "65 axes": _shape(f"({'1, ' * 65})"),
    "1000 axes": _shape(f"({'1, ' * 1000})"),
    "an order in words": _GOOD.replace("False", "'C'"),
    "objects": _descr("'|O'"),
    "fields": _descr("[('a', '<f4'), ('b', '<i8')]"),
    "fields of fields": _descr("[('a', [('b', [('c', '<f4')])])]"),
    "fields in 80 levels": _descr("[('a', " * 80 + "'<f4'" + ")]" * 80),
    "fields with objects": _descr("[('a', '|O')]"),
    "fields twice": _descr("[('a', '<f4'), ('a', '<f4')]"),
    "fields with titles": _descr("[(('t', 'a'), '<f4')]"),
    "fields from a dictionary": _descr("{'names': ['a'], 'formats': ['O'], 'offsets': [-8]}"),
    "comma types": _descr("'f4,f4'"),
    "3000 types": _descr("'" + "f4," * 3000 + "'"),
    "arrays of types": _descr("('<f4', (3,))"),
    "arrays of 2^40 types": _descr("('<f4', (1099511627776,))"),
    "types below zero": _descr("('<f4', (-3,))"),
    "a dot": _descr("'.'"),
    "nothing for a type": _descr("''"),
    "none for a type": _descr("None"),
    "a number for a type": _descr("4"),
    "bytes for a type": _descr("b'<f4'"),
    "an unknown type": _descr("'<q9'"),
    "strings": _descr("'<U5'"),
    "strings of 2^31": _descr("'<U2147483647'"),
    "bytes": _descr("'|S3'"),
    "void": _descr("'|V8'"),
    "void of 2^31": _descr("'|V2147483647'"),
    "dates": _descr("'<M8[ns]'"),
    "dates of odd units": _descr("'<M8[9999999999ns]'"),
    "spans": _descr("'<m8[D]'"),
    "complex": _descr("'<c8'"),
    "strings of variable width": _descr("'T'"),
}
"""Every one of them is no header of numbers, or disagrees with the 24 bytes behind it."""

_LENGTHS = {
    "a header of 0 bytes": b"\x93NUMPY\x01\x00\x00\x00",
    "a header beyond the end": b"\x93NUMPY\x01\x00\xff\xff" + _GOOD.encode(),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + _GOOD.encode(),
    "half of the magic": b"\x93NUM",
    "no bytes": b"",
    "another magic": b"\x94NUMPY\x01\x00" + b" " * 100,
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "text": b"x = 1\n",
    "a header above 10,000 bytes": npy(_GOOD + " " * 20000, bytes(24)),
    "version 3": npy(_GOOD, bytes(24), (3, 0)),
    "version 0": npy(_GOOD, bytes(24), (0, 0)),
    "version 255": npy(_GOOD, bytes(24), (255, 255)),
    "too few numbers": npy(_GOOD, bytes(23)),
    "too many numbers": npy(_GOOD, bytes(25)),
    "two arrays in one file": as_bytes(good()[0]) * 2,
}

_ROWS = np.arange(12.0).reshape(4, 3)

ODD: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
    "big-endian floats": (_ROWS.astype(">f8"), LOADED),
    "big-endian integers": (_ROWS.astype(">i2"), LOADED),
    "half floats": (_ROWS.astype("f2"), LOADED),
    "long doubles": (_ROWS.astype(np.longdouble), LOADED),
    "Fortran order": (np.asfortranarray(_ROWS), LOADED),
    "booleans": (_ROWS > 5, EITHER),
    "bytes": (_ROWS.astype("u1"), LOADED),
    "signed bytes": (-_ROWS.astype("i1"), LOADED),
    "unsigned 16 bits": (_ROWS.astype("u2"), LOADED),
    "unsigned 64 bits": (_ROWS.astype("u8"), LOADED),
    "unsigned 64 bits above int64": (_ROWS.astype("u8") + np.uint64(2**63), REFUSED),
    "64 bits at their ends": (
        np.array([[-(2**63)], [2**63 - 1], [0], [1]], dtype=np.int64),
        LOADED,
    ),
    "one axis": (np.arange(4.0), LOADED),
    "32 axes": (np.zeros((4,) + (1,) * 31) + np.arange(4).reshape((4,) + (1,) * 31), LOADED),
    "64 axes": (np.zeros((4,) + (1,) * 63) + np.arange(4).reshape((4,) + (1,) * 63), EITHER),
    "not a number": (np.full((4, 3), np.nan), REFUSED),
    "infinity": (np.full((4, 3), np.inf), REFUSED),
    "floats above float32": (_ROWS + 1e300, REFUSED),
    "long doubles above float64": (_ROWS.astype(np.longdouble) + np.longdouble("1e4000"), REFUSED),
    "floats below float32": (np.array([[1e-300], [2.0], [3.0], [4.0]]), LOADED),
    "complex numbers": (_ROWS + 1j, REFUSED),
    "text": (np.array([["a"]] * 4), REFUSED),
    "dates": (np.zeros((4, 1), "M8[s]"), REFUSED),
    "records": (np.zeros(4, [("a", "f4")]), REFUSED),
    "a row less than targets": (_ROWS[:3], REFUSED),
    "no axes": (np.float32(1), REFUSED),
    "no rows": (_ROWS[:0], REFUSED),
    "empty rows": (np.zeros((4, 0)), REFUSED),
}


def _overwrite(folder: Path, content: bytes, *, name: str, mapped: bool) -> dict[str, Any]:
    write_good(folder)
    x, y = good()
    members = {"x": as_bytes(x), "y": as_bytes(y), name: content}
    if not mapped:
        write_members(folder / "validation.npz", {f"{k}.npy": v for k, v in members.items()})
        return arrays_section()
    (folder / "npy").mkdir()
    for key, value in members.items():
        (folder / "npy" / f"{key}.npy").write_bytes(value)
    section = arrays_section()
    section["splits"]["validation"]["path"] = "npy"
    return section


def _overlap(folder: Path, x: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    for name, rows in (("calibration", x), ("validation", other)):
        np.savez(folder / f"{name}.npz", x=rows, y=np.arange(len(rows)))
    return arrays_section()


def _odd(folder: Path, array: np.ndarray, *, targets: bool) -> dict[str, Any]:
    """Both splits have the array, in the second other values where they can differ."""
    write_good(folder)
    if targets:
        x, _ = good(2)
        np.savez(folder / "calibration.npz", x=good(1)[0], y=array)
        np.savez(folder / "validation.npz", x=x, y=array)
        return arrays_section()
    np.savez(folder / "both.npz", x=array, y=np.arange(4))
    section = arrays_section()
    section["splits"] = {
        "calibration": {"path": "both.npz", "rows": [0, 2]},
        "validation": {"path": "both.npz", "rows": [2, 4]},
    }
    return section


def kinds() -> Iterator[Case]:
    """All kinds, each once."""
    contents = {
        **{f"header: {name}": npy(text, bytes(24)) for name, text in HEADERS.items()},
        **_LENGTHS,
    }
    for name, content in contents.items():
        for mapped in (False, True):
            member = "y" if "rows" in name else "x"
            yield Case(
                f"{'npy' if mapped else 'npz'}: {name}",
                lambda f, c=content, n=member, m=mapped: _overwrite(f, c, name=n, mapped=m),
                # What NumPy 2 wrote in Python 2 can be read.
                EITHER if "Python 2" in name else REFUSED,
            )
    for name, (array, expected) in ODD.items():
        for targets in (False, True):
            yield Case(
                f"{'y' if targets else 'x'} of {name}",
                lambda f, a=array, t=targets: _odd(f, a, targets=t),
                expected,
            )
    zero = np.zeros((2, 3), "f4")
    pairs = {
        "-0 and 0": (zero, -zero),
        "two float types": (_ROWS, _ROWS.astype("f2")),
        "floats that are one in float32": (_ROWS + 1 / 3, _ROWS + 1 / 3 + 1e-12),
        "two integer types": (_ROWS.astype("i4"), _ROWS.astype("i8")),
        "integers with and without sign": (_ROWS.astype("u2"), _ROWS.astype("i8")),
        "bytes and integers": (_ROWS.astype("u1"), _ROWS.astype("i8")),
        "two byte orders": (_ROWS.astype(">i8"), _ROWS.astype("<i8")),
        "two orders of axes": (_ROWS, np.asfortranarray(_ROWS)),
        "true as 1 and as 2": (_ROWS > 5, np.full((4, 3), 2, "u1").view("?") & (_ROWS > 5)),
        "another order of rows": (_ROWS, _ROWS[::-1]),
    }
    for name, (x, other) in pairs.items():
        yield Case(f"overlap: {name}", lambda f, x=x, o=other: _overlap(f, x, o))
