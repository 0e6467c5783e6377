"""Data in arrays: the digits of scikit-learn, .npz files and folders of .npy files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.array_files import has_array, read_array
from mfac_compress.pipeline.inputs.splits import (
    Extremes,
    as_target,
    channelwise,
    check_channels,
    check_unchanged,
    sample_digests,
)
from mfac_compress.pipeline.quoting import shown
from mfac_compress.pipeline.recipe.schema import ArraysData, FileRows, Rows

_CHUNK = 1 << 26
"""Bytes looked at together, of arrays that do not fit in memory."""

_MOST = np.iinfo(np.int64).max
_NUMBER_OF_A_TOKEN = 4
"""Bytes from which on an integer is taken for a number of something, not for a measured value."""


@dataclass(frozen=True)
class Preparation:
    """What is done to raw arrays: ``(x / divide_by - mean) / std``, channels first.

    With ``dtype`` int64 nothing is done to the numbers.
    """

    layout: Literal["as_is", "NHWC", "NCHW"]
    divide_by: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Literal["float32", "int64"] = "float32"


class ArraySamples:
    """Rows of two arrays, kept in their own types and turned to the model's per batch.

    Args:
        x: All inputs. Shape ``[N, ...]``, real numbers.
        y: All targets. Shape ``[N, ...]``.
        rows: Half-open range of this split.
        preparation: What is done to ``x``.
        origin: What the rows are of, for messages.
        key: The split's key in the recipe.
    """

    stable = True  # or check_unchanged refuses them

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
        self._preparation, self._origin, self._key = preparation, origin, key
        self._check_shape()
        self._scan()

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        x = _native(self._x[positions])
        if isinstance(self._x, np.memmap):
            # It is read from the disk as often as it is asked for, and may change meanwhile.
            check_unchanged(sample_digests(x), self.digests, positions, self.describe)
        y = as_target(torch.from_numpy(_native(self._y[positions])))
        x = torch.from_numpy(x)
        if self._preparation.layout == "NHWC":
            x = x.permute(0, 3, 1, 2).contiguous()
        return x, y

    def normalise(self, x: Tensor) -> Tensor:
        prepare = self._preparation
        if prepare.dtype == "int64":
            return x.long()
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

    def _scan(self) -> None:
        """Look at all numbers once: whether they can be used, and what they hash to."""
        self.digests: list[bytes] = []
        inputs, targets = Extremes(), Extremes()
        total = hashlib.sha256()
        broken: dict[str, list[int]] = {"inputs": [], "targets": []}
        count = max(1, _CHUNK * len(self._x) // (self._x.nbytes + self._y.nbytes))
        for start in range(0, len(self._x), count):
            rows = slice(start, start + count)
            parts = {
                "inputs": self._native(self._x[rows], "inputs"),
                "targets": self._native(self._y[rows], "targets"),
            }
            for what, part in parts.items():
                if part.dtype.kind == "f":
                    finite = np.isfinite(part.reshape(len(part), -1)).all(axis=1)
                    broken[what] += (self._start + start + np.flatnonzero(~finite)).tolist()
            x, y = parts.values()
            self.digests += sample_digests(x)
            total.update(np.ascontiguousarray(y))
            if self._preparation.dtype == "int64":
                inputs.add(x, start)
            targets.add(y, start)
        self._check_finite(broken)
        self.extremes = [*inputs.positions, *targets.positions]
        facts = (self._preparation, x.shape[1:], x.dtype.str, y.shape[1:], y.dtype.str)
        total.update(b"".join(self.digests))
        total.update(repr(facts).encode())
        self.fingerprint = total.hexdigest()

    def _check_finite(self, broken: dict[str, list[int]]) -> None:
        for what, rows in broken.items():
            if rows:
                raise InputError(
                    f"{self._key} must have finite {what}, within what float32 holds. "
                    f"{self._origin} has NaN or Inf in {len(rows)} rows, the first {rows[:5]}."
                )

    def _native(self, array: np.ndarray, what: str) -> np.ndarray:
        try:
            return _native(array)
        except OverflowError as error:
            raise InputError(
                f"{self._key} must have {what} of at most 2^63 - 1. {self._origin} has more."
            ) from error


class ArraySource:
    """Opens the files of an ``arrays`` recipe, each one once.

    Args:
        recipe: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
    """

    def __init__(self, recipe: ArraysData, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        self._opened: dict[tuple[Path, str], np.ndarray] = {}

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
        recipe, path = self._recipe, self._recipe.resolve(split.path, self._folder)
        given = shown(split.path)
        x = self._read(path, recipe.x, split.path, key)
        if labelled or has_array(path, recipe.y):
            y = self._read(path, recipe.y, split.path, key)
        else:
            y = np.zeros(len(x), dtype=np.int64)
        if len(x) != len(y):
            raise InputError(
                f"{key}.path must hold as many targets as inputs. {given} has {len(x)} rows "
                f"of {recipe.x!r} and {len(y)} of {recipe.y!r}."
            )
        preparation = Preparation(
            recipe.layout, recipe.divide_by, recipe.mean, recipe.std, self._dtype(x, given)
        )
        return ArraySamples(x, y, split.rows, preparation=preparation, origin=given, key=key)

    def _read(self, path: Path, name: str, given: str, key: str) -> np.ndarray:
        if (path, name) not in self._opened:
            self._opened[path, name] = read_array(path, name, given=given, key=key)
        return self._opened[path, name]

    def _dtype(self, x: np.ndarray, given: str) -> Literal["float32", "int64"]:
        recipe = self._recipe
        if recipe.dtype == "int64" and x.dtype.kind == "f":
            raise InputError(
                f"data.dtype int64 needs an array of integers. {given} has {recipe.x!r} of type "
                f"{x.dtype}. Save it as integers, or set data.dtype to float32."
            )
        if recipe.dtype != "auto":
            return recipe.dtype
        wide = x.dtype.kind in "iu" and x.dtype.itemsize >= _NUMBER_OF_A_TOKEN
        return "int64" if wide and not recipe.prepares else "float32"


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
            preparation=Preparation("NCHW", divide_by=16.0),
            origin="digits",
            key=key,
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


def _native(array: np.ndarray) -> np.ndarray:
    """What PyTorch takes, equal where the numbers are: bytes, int64 or float32.

    Raises:
        OverflowError: If a number is above what int64 holds.
    """
    if array.dtype.kind == "b":
        # Any byte but 0 is true, and files can hold any.
        return (array.view(np.uint8) != 0).astype(np.uint8)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # to infinity, which is refused as such
            return array.astype(np.float32, copy=False)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and (array > _MOST).any():
        raise OverflowError
    return array.astype(np.int64, copy=False)
