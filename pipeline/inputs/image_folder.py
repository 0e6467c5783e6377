"""Data in folders of images: ``path/class/image.png``."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_exists
from mfac_compress.pipeline.inputs.augment import channelwise
from mfac_compress.pipeline.inputs.dataset import Augmentation, unchanged
from mfac_compress.pipeline.inputs.image_files import FORMATS, check_pixels, open_image
from mfac_compress.pipeline.quoting import shown
from mfac_compress.pipeline.recipe.schema import ImageFolderData

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Files that count as images; others are passed over."""

_THREADS = min(os.cpu_count() or 1, 16)

Result = TypeVar("Result")


class FolderDataset:
    """Images decoded when they are asked for, as RGB of one size.

    Args:
        folder: Where the classes are.
        section: Size, mean and std.
        key: The split's key in the recipe.
    Raises:
        InputError: If a class has no images, or the first one is broken.
    """

    kind: Literal["storage"] = "storage"
    alone = True
    """Most images are bytes. One with all levels of 16 bits makes its batch floats."""
    lengths = None

    def __init__(self, folder: Path, section: ImageFolderData, key: str) -> None:
        self._section, self.key = section, key
        self.classes = _classes(folder, key)
        found = [_images(folder / name, key) for name in self.classes]
        self._files = [file for files in found for file in files]
        self._labels = [label for label, files in enumerate(found) for _ in files]
        self._size: tuple[int, int] | None = None  # until the first is decoded
        self._size = next(_in_threads(self._decode, self._files[:1])).shape[1::-1]
        self.preparation = repr((section.resize, section.crop, section.mean, section.std))

    def __len__(self) -> int:
        return len(self._files)

    def read(self, positions: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        # Decoding leaves Python's lock, so threads do without copies between processes.
        images = _in_threads(self._decode, [self._files[at] for at in positions])
        return list(zip(images, (self._labels[at] for at in positions), strict=True))

    def collate(self, samples: Sequence[tuple[np.ndarray, int]]) -> Batch:
        images, labels = zip(*samples, strict=True)
        return Batch(torch.from_numpy(np.stack(images)), torch.tensor(labels))

    def prepare(self, inputs: Tensor, augment: Augmentation = unchanged) -> Tensor:
        pixels = augment(inputs.permute(0, 3, 1, 2).contiguous())
        return channelwise(pixels, 255.0, self._section.mean, self._section.std)

    def describe(self, position: int) -> str:
        return shown(self._files[position])

    def _decode(self, file: Path) -> np.ndarray:
        """RGB. Shape ``[height, width, 3]``, bytes or float32 in 0..255."""
        image = open_image(file)
        size = self._resized(file, image.size)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        crop = self._section.crop
        if crop is not None:
            self._check_crop(file, size, crop)
            left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
            image = image.crop((left, top, left + crop, top + crop))
        self._check_size(file, image.size)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)

    def _check_crop(self, file: Path, size: tuple[int, int], crop: int) -> None:
        if min(size) < crop:
            raise InputError(
                f"data.crop must be at most the shorter side of every image. Got {crop}, and "
                f"{shown(file)} would be {size[0]}x{size[1]}. Set data.resize to {crop} or more."
            )

    def _resized(self, file: Path, size: tuple[int, int]) -> tuple[int, int]:
        target = self._section.resize
        if target is None:
            return size
        width, height = size
        longer = max(1, int(target * max(size) / min(size)))
        size = (target, longer) if width <= height else (longer, target)
        try:
            check_pixels(*size)
        except ValueError as error:
            raise InputError(
                f"data.resize must leave images that fit in memory. Got {target}, and of "
                f"{shown(file)} of {width}x{height} {error}, or lower data.resize."
            ) from error
        return size

    def _check_size(self, file: Path, size: tuple[int, int]) -> None:
        first = self._size or size
        if size != first:
            raise InputError(
                f"data needs images of one size. {shown(self._files[0])} is "
                f"{first[0]}x{first[1]} and {shown(file)} is {size[0]}x{size[1]}. "
                "Set data.resize and data.crop."
            )


def open_folders(
    section: ImageFolderData, folder: Path, labelled: Mapping[str, bool]
) -> dict[str, FolderDataset]:
    """Open the folders of an ``image_folder`` recipe, which all have the same classes.

    Args:
        section: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
        labelled: Splits to open.
    Raises:
        InputError: If a folder is missing, has no images, or has other classes than the first.
    """
    opened = {}
    for name in labelled:
        key, split = f"data.splits.{name}", getattr(section.splits, name)
        if split is None:
            raise InputError(f"{key} must be given where the recipe trains. Got none.")
        path = section.resolve(split.path, folder)
        check_exists(path, split.path, f"{key}.path", "folder")
        opened[name] = FolderDataset(path, section, key)
        _check_classes(opened[name], next(iter(opened.values())))
    return opened


def _check_classes(found: FolderDataset, first: FolderDataset) -> None:
    differing = sorted(set(found.classes) ^ set(first.classes))
    if differing:
        raise InputError(
            f"{found.key}.path must have the same classes as {first.key}.path, because a class's "
            "number is its place in the alphabet. Only one of them has "
            f"{', '.join(map(shown, differing[:10]))}."
        )


def _in_threads(function: Callable[[Path], Result], files: Iterable[Path]) -> Iterator[Result]:
    """Apply a function that decodes to files, in order. The first failure ends it at once."""
    left = iter(files)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        # Of large images, which are refused by their size, and of transparency that is dropped.
        warnings.simplefilter("ignore")
        while some := list(islice(left, 64 * _THREADS)):
            yield from pool.map(function, some)


def _classes(folder: Path, key: str) -> list[str]:
    try:
        found = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError as error:
        raise InputError(_unlisted(key, error)) from error
    classes = sorted(name for name in found if not name.startswith("."))
    if not classes:
        raise InputError(
            f"{key}.path must have a sub-folder for each class. {shown(folder)} has none."
        )
    return classes


def _images(folder: Path, key: str) -> list[Path]:
    _check_within(folder, key)

    def refuse(error: OSError) -> None:
        raise InputError(_unlisted(key, error)) from error

    files = sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES
    )
    if not files:
        raise InputError(
            f"{key}.path must have images for each class. {shown(folder)} has no file with one of "
            f"{', '.join(SUFFIXES)}."
        )
    return files


def _check_within(folder: Path, key: str) -> None:
    """Refuse a class that is a link to a folder around it: its images would be all there are."""
    target = Path(os.path.realpath(folder))
    if Path(os.path.realpath(folder.parent)).is_relative_to(target):
        raise InputError(
            f"{key}.path must have a folder of its own for each class. {shown(folder)} is a link "
            f"to {shown(target)}, which it is in."
        )


def _unlisted(key: str, error: OSError) -> str:
    return (
        f"{key}.path must be a folder that can be listed. {shown(error.filename)} cannot "
        f"({error.strerror}). Change its permissions."
    )
