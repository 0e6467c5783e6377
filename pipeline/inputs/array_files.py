"""Arrays of numbers out of .npz files and folders of .npy files that nobody vouches for.

NumPy's own reader believes what a header says: it sets aside memory for as many numbers as that
claims, and reads a member of an .npz that is no array as bytes. Here the header is parsed by NumPy
from a few bytes, and must agree with the size of the file before any memory is taken.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_exists, check_regular
from mfac_compress.pipeline.inputs.free_memory import SHARE_OF_FREE, free_memory
from mfac_compress.pipeline.quoting import shown

_HEADER = 12 + 10_000
"""Bytes that a header may take: its prefix, and the most that NumPy parses."""

_CHUNK = 1 << 20
_LARGE = 1 << 28
_MOST_PACKED = 100
"""A large array may be compressed so many times, and no more: a file of 9 MB can claim 9 GB."""

_SHOWN = 10


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    size: int
    """Of the header, in bytes: where the numbers start."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, numbers: np.ndarray) -> np.ndarray:
        """The array of its bytes."""
        order = "F" if self.fortran_order else "C"
        return numbers.view(self.dtype).reshape(self.shape, order=order)


class _UnfitError(ValueError):
    """An array that cannot be used, in words that follow its name."""


def read_array(path: Path, name: str, *, given: str, key: str) -> np.ndarray:
    """Read one array.

    Args:
        path: An .npz file, or a folder of .npy files.
        name: Of the array.
        given: The path as the recipe writes it.
        key: The key of the split in the recipe, for messages.
    Returns:
        Real numbers, of one axis or more and none of them empty. That of a folder is mapped, not
        read: a data set may be larger than memory.
    Raises:
        InputError: If there is no such file or array, or the array is not what it has to be.
    """
    check_exists(path, given, f"{key}.path")
    try:
        if path.is_dir():
            return _map(path, name, given, key)
        check_regular(path, f"{key}.path")
        return _read_member(path, name, given, key)
    except InputError:
        raise
    except Exception as error:
        # Parsers of foreign bytes raise whatever they stumble over, MemoryError among it.
        raise InputError(
            f"{key}.path must be an .npz file or a folder of .npy files, of numbers only. In "
            f"{shown(given)}, {shown(name)!r} cannot be read ({_said(error)})."
        ) from error


def has_array(path: Path, name: str) -> bool:
    """Whether a file or folder that :func:`read_array` has read from holds another array."""
    if path.is_dir():
        return os.path.exists(path / f"{name}.npy")
    with zipfile.ZipFile(path) as archive:
        return name in _names(archive)


def _map(folder: Path, name: str, given: str, key: str) -> np.ndarray:
    file = folder / f"{name}.npy"
    if not os.path.exists(file):
        raise InputError(_no_array(key, given, name, sorted(f.stem for f in folder.glob("*.npy"))))
    check_regular(file, f"{key}.path")
    with file.open("rb") as stream:
        header = _parse(stream.read(_HEADER))
        _check_size(header, os.fstat(stream.fileno()).st_size)
        numbers = np.memmap(stream, np.uint8, "r", header.size, (header.nbytes,))
    return header.array(numbers)


def _read_member(path: Path, name: str, given: str, key: str) -> np.ndarray:
    with path.open("rb") as stream:
        if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise InputError(
                f"{key}.path must be an .npz file or a folder of .npy files. "
                f"Got {shown(given)!r}, a single array. Give its folder."
            )
        with zipfile.ZipFile(stream) as archive:
            names = _names(archive)
            if name not in names:
                raise InputError(_no_array(key, given, name, names))
            member = archive.getinfo(names[name])
            _check_packing(member)
            with archive.open(member) as content:
                return _read(content, member.file_size)


def _names(archive: zipfile.ZipFile) -> dict[str, str]:
    """Names of the arrays, as NumPy gives them, to those of the archive's members."""
    names: dict[str, str] = {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        if name in names:
            raise _UnfitError(f"the archive has {shown(name)!r} twice")
        names[name] = member
    return names


def _check_packing(member: zipfile.ZipInfo) -> None:
    if member.flag_bits & 1:
        raise _UnfitError("it is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _UnfitError("it is compressed in a way that NumPy does not write")
    if member.file_size > max(_LARGE, _MOST_PACKED * member.compress_size):
        raise _UnfitError(
            f"it claims {member.file_size:,} bytes out of {member.compress_size:,}; save data that "
            "can be compressed this far as a folder of .npy files"
        )


def _read(content: IO[bytes], size: int) -> np.ndarray:
    start = content.read(_HEADER)
    header = _parse(start)
    _check_size(header, size)
    free, _ = free_memory()
    if header.nbytes > SHARE_OF_FREE * free:
        raise _UnfitError(
            f"it takes {header.nbytes:,} bytes, and {free:,} are free; save it as a folder of .npy "
            "files, which stay on disk"
        )
    numbers = np.empty(header.nbytes, np.uint8)
    view = memoryview(numbers)
    chunk = start[header.size :]
    while chunk:
        view[: len(chunk)] = chunk
        view = view[len(chunk) :]
        # To the end: only there is the checksum compared.
        chunk = content.read(_CHUNK)
    if len(view):
        raise _UnfitError("it is cut off")
    return header.array(numbers)


def _parse(start: bytes) -> _Header:
    stream = io.BytesIO(start)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise _UnfitError(f"it is in version {version} of NumPy's format, not of plain numbers")
    parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = parse(stream)
    header = _Header(shape, fortran_order, dtype, stream.tell())
    what = f"it is of type {_short(dtype)} and shape {_short(list(shape))}"
    if dtype.kind not in "biuf" or dtype.subdtype is not None:
        raise _UnfitError(f"{what}, and not of real numbers")
    if not shape or any(isinstance(axis, bool) or axis < 1 for axis in shape):
        raise _UnfitError(f"{what}; it must have a row per sample, and no empty axis")
    return header


def _check_size(header: _Header, size: int) -> None:
    expected = header.size + header.nbytes
    if size != expected:
        raise _UnfitError(
            f"its header says {_short(header.dtype)} {_short(list(header.shape))}, "
            f"{_short(expected)} bytes in all, and there are {size:,}: it is cut off, or more was "
            "written to it than one array"
        )


def _no_array(key: str, given: str, name: str, found: Iterable[str]) -> str:
    names = [shown(other) for other in found]
    listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return (
        f"{key}.path must hold an array {shown(name)!r}. {shown(given)} has {listed or 'none'}. "
        "Name the arrays with data.x and data.y."
    )


def _said(error: Exception) -> str:
    if isinstance(error, MemoryError | RecursionError):
        return "its header is no description of an array"
    return _short(str(error) or type(error).__name__)


def _short(value: object) -> str:
    try:
        return shown(value)
    except ValueError:  # an integer of more digits than Python writes
        return "(too long to show)"
