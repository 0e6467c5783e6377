"""Data in arrays: the digits of scikit-learn, .npz files and folders of .npy files."""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.splits import as_target, channelwise, check_channels
from mfac_compress.pipeline.recipe.schema import ArraysData, FileRows, Rows

_CHUNK = 4096
"""Rows looked at together, for arrays that do not fit in memory."""


@dataclass(frozen=True)
class Preparation:
    """What is done to raw arrays: ``(x / divide_by - mean) / std``, channels first."""

    layout: Literal["as_is", "NHWC", "NCHW"]
    divide_by: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class ArraySamples:
    """Rows of two arrays, kept in their own types and turned to float32 per batch.

    Args:
        x: All inputs. Shape ``[N, ...]``, real numbers.
        y: All targets. Shape ``[N, ...]``.
        rows: Half-open range of this split.
        preparation: What is done to ``x``.
        origin: What the rows are of, for messages.
        key: The split's key in the recipe.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        rows: tuple[int, int] | None,
        *,
        preparation: Preparation,
        origin: str,
        key: str,
    ) -> None:
        self._start, stop = _check_rows(rows, x, origin, key)
        self._x, self._y = x[self._start : stop], y[self._start : stop]
        self._preparation, self._origin = preparation, origin
        self._check_shape()
        self._check_finite(key)
        self.digests = [
            hashlib.sha256(row).digest()
            for start in range(0, len(self._x), _CHUNK)
            for row in np.ascontiguousarray(_native(self._x[start : start + _CHUNK]))
        ]
        self.fingerprint = self._fingerprint()

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(_native(self._x[positions]))
        y = torch.from_numpy(_native(self._y[positions]))
        if self._preparation.layout == "NHWC":
            x = x.permute(0, 3, 1, 2).contiguous()
        return x, as_target(y)

    def normalise(self, x: Tensor) -> Tensor:
        prepare = self._preparation
        return channelwise(x, prepare.divide_by, prepare.mean, prepare.std)

    def describe(self, position: int) -> str:
        return f"row {self._start + position} of {self._origin}"

    def _check_shape(self) -> None:
        prepare, shape = self._preparation, self._x.shape[1:]
        if prepare.layout != "as_is" and len(shape) != 3:
            raise InputError(
                f"data.layout {prepare.layout} needs inputs of four dimensions. {self._origin} has "
                f"the shape {list(self._x.shape)}. Add an axis to the array, or use as_is."
            )
        if prepare.layout == "NHWC":
            shape = (shape[2], *shape[:2])
        check_channels("data.mean", prepare.mean, shape)
        check_channels("data.std", prepare.std, shape)

    def _check_finite(self, key: str) -> None:
        for what, array in (("inputs", self._x), ("targets", self._y)):
            broken = [self._start + row for row in _non_finite(array)]
            if broken:
                raise InputError(
                    f"{key} must have finite {what}. {self._origin} has NaN or Inf in "
                    f"{len(broken)} rows, the first {broken[:5]}."
                )

    def _fingerprint(self) -> str:
        y = np.ascontiguousarray(self._y)
        facts = (self._preparation, self._x.shape, self._x.dtype.str, y.shape, y.dtype.str)
        digest = hashlib.sha256(b"".join(self.digests))
        digest.update(y)
        digest.update(repr(facts).encode())
        return digest.hexdigest()


class ArraySource:
    """Opens the files of an ``arrays`` recipe, each one once.

    Args:
        recipe: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
    """

    def __init__(self, recipe: ArraysData, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        self._opened: dict[tuple[Path, bool], tuple[np.ndarray, np.ndarray]] = {}

    def load(self, split: FileRows, key: str, *, labelled: bool = True) -> ArraySamples:
        """Take the samples of one split.

        Args:
            split: File and rows.
            key: The split's key in the recipe, for messages.
            labelled: Whether targets are needed. Otherwise they may be missing, and are 0 then.
        Returns:
            The samples.
        Raises:
            InputError: If the file or an array in it is missing or does not fit the recipe.
        """
        path = (self._folder / Path(split.path).expanduser()).resolve()
        if (path, labelled) not in self._opened:
            self._opened[path, labelled] = _open(path, split.path, self._recipe, key, labelled)
        x, y = self._opened[path, labelled]
        recipe = self._recipe
        preparation = Preparation(recipe.layout, recipe.divide_by, recipe.mean, recipe.std)
        return ArraySamples(x, y, split.rows, preparation=preparation, origin=split.path, key=key)


class DigitsSource:
    """The 1,797 digits bundled with scikit-learn, read once."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Whole numbers 0..16.
        self._x = digits.images.astype(np.uint8)[:, None]
        self._y = digits.target.astype(np.int64)

    def load(self, split: Rows, key: str) -> ArraySamples:
        """Take the samples of one split.

        Args:
            split: Rows.
            key: The split's key in the recipe, for messages.
        Returns:
            The samples.
        Raises:
            InputError: If the rows are not within 0..1797.
        """
        return ArraySamples(
            self._x,
            self._y,
            split.rows,
            preparation=Preparation("NCHW", 16.0),
            origin="digits",
            key=key,
        )


def _open(
    path: Path, given: str, recipe: ArraysData, key: str, labelled: bool
) -> tuple[np.ndarray, np.ndarray]:
    x = _read(path, recipe.x, given, key)
    if labelled or recipe.y in _names(path):
        y = _read(path, recipe.y, given, key)
    else:
        y = np.zeros(len(x), dtype=np.int64)
    for name, array in ((recipe.x, x), (recipe.y, y)):
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise InputError(
                f"{key}.path must hold arrays of real numbers, a row per sample. {given} has "
                f"{name!r} of type {array.dtype} and shape {list(array.shape)}."
            )
    if len(x) != len(y):
        raise InputError(
            f"{key}.path must hold as many targets as inputs. {given} has {len(x)} rows of "
            f"{recipe.x!r} and {len(y)} of {recipe.y!r}."
        )
    return x, y


def _names(path: Path) -> list[str]:
    """Arrays of a file or folder that :func:`_read` has read one of."""
    if path.is_dir():
        return [file.stem for file in path.glob("*.npy")]
    with np.load(path, allow_pickle=False) as archive:
        return archive.files


def _read(path: Path, name: str, given: str, key: str) -> np.ndarray:
    if not os.path.exists(path):  # unlike Path's, False for a name that is too long
        raise InputError(
            f"{key}.path must be a file or folder that exists. Got {given!r}, looked for {path}. "
            "Relative paths start at the recipe's folder."
        )
    try:
        if path.is_dir():
            # Memory-mapped: a data set may be larger than memory.
            return np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return _read_archive(path, name, given, key)
    except FileNotFoundError as error:
        found = sorted(file.stem for file in path.glob("*.npy"))
        raise InputError(_no_array(key, given, name, found)) from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise InputError(
            f"{key}.path must be an .npz file or a folder of .npy files, of numbers only. "
            f"{given} cannot be read ({error})."
        ) from error


def _read_archive(path: Path, name: str, given: str, key: str) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise InputError(
            f"{key}.path must be an .npz file or a folder of .npy files. Got {given!r}, a single "
            "array. Give its folder."
        )
    with loaded as archive:
        if name not in archive.files:
            raise InputError(_no_array(key, given, name, archive.files))
        return archive[name]


def _no_array(key: str, given: str, name: str, found: Sequence[str]) -> str:
    return (
        f"{key}.path must hold an array {name!r}. {given} has {', '.join(found) or 'none'}. "
        "Name the arrays with data.x and data.y."
    )


def _check_rows(
    rows: tuple[int, int] | None, x: np.ndarray, origin: str, key: str
) -> tuple[int, int]:
    start, stop = rows or (0, len(x))
    if not 0 <= start < stop <= len(x):
        raise InputError(
            f"{key}.rows must be [start, stop] with 0 <= start < stop <= {len(x)}, the rows of "
            f"{origin}. Got [{start}, {stop}]."
        )
    return start, stop


def _non_finite(array: np.ndarray) -> list[int]:
    if array.dtype.kind != "f":
        return []
    broken: list[int] = []
    for start in range(0, len(array), _CHUNK):
        piece = array[start : start + _CHUNK]
        finite = np.isfinite(piece.reshape(len(piece), -1)).all(axis=1)
        broken += (start + np.flatnonzero(~finite)).tolist()
    return broken


def _native(array: np.ndarray) -> np.ndarray:
    # What PyTorch takes: the machine's byte order, and of unsigned integers only bytes.
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
