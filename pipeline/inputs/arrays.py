"""Data in arrays: the bundled digits, .npz files and folders of .npy files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch, Tree, map_tensors, named_tensors
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.array_files import has_array, read_array
from mfac_compress.pipeline.inputs.augment import channelwise, check_channels
from mfac_compress.pipeline.inputs.dataset import Augmentation, as_target, unchanged
from mfac_compress.pipeline.quoting import shown
from mfac_compress.pipeline.recipe.schema import ArrayRows, ArraysData, DigitsData

_DIGITS = Path(__file__).with_name("digits.npz")
_MOST = np.iinfo(np.int64).max
_NUMBER_OF_A_TOKEN = 4
"""Bytes from which on an integer is taken for a number of something, not for a measured value."""

Arrays = np.ndarray | dict[str, np.ndarray]
"""One array ``[N, ...]``, or several by name."""


@dataclass(frozen=True)
class Preparation:
    """What is done to raw arrays: ``(x / divide_by - mean) / std``, channels first.

    Nothing is done to the numbers of arrays whose ``dtype`` is int64.
    """

    dtype: str | Mapping[str, str] = "float32"
    layout: Literal["as_is", "NHWC", "NCHW"] = "as_is"
    divide_by: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, inputs: Tree, augment: Augmentation = unchanged) -> Tree:
        if self.layout == "NHWC":
            inputs = inputs.permute(0, 3, 1, 2).contiguous()
        return map_tensors(self._prepare, augment(inputs), self.dtype)

    def _prepare(self, x: Tensor, dtype: str) -> Tensor:
        return x.long() if dtype == "int64" else channelwise(x, self.divide_by, self.mean, self.std)

    def check(self, x: np.ndarray, origin: str) -> None:
        """Check that the layout, mean and std fit an array ``[n, ...]``.

        Raises:
            InputError: If they do not.
        """
        shape = x.shape[1:]
        if self.layout != "as_is" and len(shape) != 3:
            raise InputError(
                f"data.layout {self.layout} needs inputs of four dimensions. {origin} has "
                f"the shape {list(x.shape)}. Add an axis to the array, or use as_is."
            )
        if self.layout == "NHWC":
            shape = (shape[2], *shape[:2])
        check_channels("data.mean", self.mean, shape)
        check_channels("data.std", self.std, shape)


class ArrayDataset:
    """Rows of arrays, kept in their own types and turned to the model's per batch.

    Args:
        x: All inputs, real numbers.
        y: All targets.
        rows: Half-open range of the split.
        preparation: What is done to ``x``.
        origin: What the rows are of, for messages.
        key: The split's key in the recipe.
    Raises:
        InputError: If the rows are not within the arrays, or the preparation does not fit them.
    """

    alone = False
    lengths = None

    def __init__(
        self,
        x: Arrays,
        y: Arrays,
        rows: tuple[int, int] | None,
        *,
        preparation: Preparation,
        origin: str,
        key: str,
    ) -> None:
        arrays = [array for _, array in named_tensors((x, y))]
        self._start, stop = _check_rows(rows, len(arrays[0]), origin, key)
        if isinstance(x, np.ndarray):
            preparation.check(x, origin)
        self._length = stop - self._start
        self._x, self._y = map_tensors(lambda array: array[self._start : stop], (x, y))
        # A mapped array is read from the disk as often as it is asked for.
        mapped = any(isinstance(array, np.memmap) for array in arrays)
        self.kind: Literal["memory", "storage"] = "storage" if mapped else "memory"
        self.prepare, self.preparation = preparation, repr(preparation)
        self._origin, self.key = origin, key

    def __len__(self) -> int:
        return self._length

    def read(self, positions: Sequence[int]) -> Sequence[int]:
        """The positions: rows are taken together in :meth:`collate`."""
        return positions

    def collate(self, samples: Sequence[int]) -> Batch:
        # A range needs no copy: it is what the first reading asks for, which changes nothing.
        whole = isinstance(samples, range)
        rows = slice(samples.start, samples.stop) if whole else np.asarray(samples)
        x = map_tensors(lambda array: self._native(array[rows], "inputs"), self._x)
        y = map_tensors(lambda array: as_target(self._native(array[rows], "targets")), self._y)
        return Batch(x, y)

    def describe(self, position: int) -> str:
        return f"row {self._start + position} of {self._origin}"

    def _native(self, array: np.ndarray, what: str) -> Tensor:
        try:
            return torch.from_numpy(np.require(_native(array), requirements="W"))
        except OverflowError as error:
            raise InputError(
                f"{self.key} must have {what} of at most 2^63 - 1. {self._origin} has more."
            ) from error


def open_digits(
    section: DigitsData, folder: Path, labelled: Mapping[str, bool]
) -> dict[str, ArrayDataset]:
    """The 1,797 digits that come with the package.

    Args:
        section: The recipe's ``data``.
        folder: Not used.
        labelled: Splits to open.
    Raises:
        InputError: If the rows of a split are not within 0..1797.
    """
    del folder
    with np.load(_DIGITS) as digits:
        x, y = digits["images"][:, None], digits["targets"]  # whole numbers 0..16
    return {
        name: ArrayDataset(
            x,
            y,
            getattr(section.splits, name).rows,
            preparation=Preparation(layout="NCHW", divide_by=16.0),
            origin="digits",
            key=f"data.splits.{name}",
        )
        for name in labelled
    }


def open_arrays(
    section: ArraysData, folder: Path, labelled: Mapping[str, bool]
) -> dict[str, ArrayDataset]:
    """Open the files of an ``arrays`` recipe, each array once.

    Args:
        section: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
        labelled: Splits to open, and whether each needs targets. Otherwise they may be missing, and
            are 0 then.
    Raises:
        InputError: If a file or an array in it is missing or does not fit the recipe.
    """
    files = _Files(section, folder)
    return {name: files.dataset(name, needs) for name, needs in labelled.items()}


class _Files:
    def __init__(self, section: ArraysData, folder: Path) -> None:
        self._section, self._folder = section, folder
        self._opened: dict[tuple[Path, str], np.ndarray] = {}

    def dataset(self, name: str, labelled: bool) -> ArrayDataset:
        section, key = self._section, f"data.splits.{name}"
        split: ArrayRows | None = getattr(section.splits, name)
        if split is None:
            raise InputError(f"{key} must be given where the recipe trains. Got none.")
        path, given = section.resolve(split.path, self._folder), shown(split.path)
        inputs, targets = split.x or section.x, split.y or section.y
        x = self._arrays(path, inputs, split.path, key)
        if labelled or all(has_array(path, name) for name in _named(targets)):
            y = self._arrays(path, targets, split.path, key)
        else:
            y = np.zeros(len(next(named_tensors(x))[1]), dtype=np.int64)
        _check_lengths([*_named(inputs), *_named(targets)], x, y, given, key)
        dtype = map_tensors(lambda array: self._dtype(array, given), x)
        preparation = Preparation(
            dtype, section.layout, section.divide_by, section.mean, section.std
        )
        return ArrayDataset(x, y, split.rows, preparation=preparation, origin=given, key=key)

    def _arrays(self, path: Path, names: str | Sequence[str], given: str, key: str) -> Arrays:
        for name in _named(names):
            if (path, name) not in self._opened:
                self._opened[path, name] = read_array(path, name, given=given, key=key)
        if isinstance(names, str):
            return self._opened[path, names]
        return {name: self._opened[path, name] for name in names}

    def _dtype(self, x: np.ndarray, given: str) -> str:
        section = self._section
        if section.dtype == "int64" and x.dtype.kind == "f":
            raise InputError(
                f"data.dtype int64 needs arrays of integers. {given} has inputs of type {x.dtype}. "
                "Save them as integers, or set data.dtype to float32."
            )
        if section.dtype != "auto":
            return section.dtype
        wide = x.dtype.kind in "iu" and x.dtype.itemsize >= _NUMBER_OF_A_TOKEN
        return "int64" if wide and not section.prepares else "float32"


def _named(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _check_lengths(names: list[str], x: Arrays, y: Arrays, given: str, key: str) -> None:
    arrays = [array for _, array in named_tensors((x, y))]
    lengths = {name: len(array) for name, array in zip(names, arrays, strict=False)}
    if len(set(lengths.values())) > 1:
        rows = " and ".join(f"{count} of {name!r}" for name, count in lengths.items())
        raise InputError(
            f"{key}.path must hold as many targets as inputs. {given} has {rows} rows."
        )


def _check_rows(
    rows: tuple[int, int] | None, length: int, origin: str, key: str
) -> tuple[int, int]:
    start, stop = rows or (0, length)
    if not 0 <= start < stop <= length:
        raise InputError(
            f"{key}.rows must be [start, stop] with 0 <= start < stop <= {length}, the rows of "
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
