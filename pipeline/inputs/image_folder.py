"""Data in folders of images: ``path/class/image.png``."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_exists
from mfac_compress.pipeline.inputs.image_files import FORMATS, check_pixels, open_image
from mfac_compress.pipeline.inputs.splits import channelwise, check_unchanged
from mfac_compress.pipeline.quoting import shown
from mfac_compress.pipeline.recipe.schema import Folder, ImageFolderData

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Files that count as images; others are passed over."""

_THREADS = min(os.cpu_count() or 1, 16)

Result = TypeVar("Result")


class FolderSamples:
    """Images decoded when they are asked for, as RGB of one size.

    All are decoded once here, so that a damaged one is found before the work, and overlaps are
    seen whatever the files' formats. Later readings must give the same pixels.

    Args:
        folder: Where the classes are.
        recipe: Size, mean and std.
        key: The split's key in the recipe.
    """

    stable = True  # or check_unchanged refuses them

    def __init__(self, folder: Path, recipe: ImageFolderData, key: str) -> None:
        self._folder, self._recipe = folder, recipe
        self.classes = _classes(folder, key)
        found = [_images(folder / name, key) for name in self.classes]
        self._files = [file for files in found for file in files]
        self._y = torch.tensor([label for label, files in enumerate(found) for _ in files])
        scanned = list(_in_threads(self._scan, self._files))
        self.digests = [digest for digest, _, _ in scanned]
        self._check_sizes([size for _, size, _ in scanned])
        # Of 8 bits, or with all levels of those that have 16.
        self._dtype = np.result_type(*{dtype for _, _, dtype in scanned})
        self.extremes = [0, len(self._files) - 1]
        facts = (self.classes, recipe.resize, recipe.crop, recipe.mean, recipe.std)
        digest = hashlib.sha256(b"".join(self.digests))
        digest.update(self._y.numpy())
        digest.update(repr(facts).encode())
        self.fingerprint = digest.hexdigest()

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        # Decoding leaves Python's lock, so threads do without copies between processes.
        images = list(_in_threads(self._decode, [self._files[at] for at in positions]))
        check_unchanged([_digest(i) for i in images], self.digests, positions, self.describe)
        stacked = np.stack(images).astype(self._dtype, copy=False)
        x = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
        return x, self._y[list(positions)]

    def normalise(self, x: Tensor) -> Tensor:
        return channelwise(x, 255.0, self._recipe.mean, self._recipe.std)

    def describe(self, position: int) -> str:
        return shown(self._files[position])

    def _scan(self, file: Path) -> tuple[bytes, tuple[int, int], np.dtype]:
        pixels = self._decode(file)
        return _digest(pixels), (pixels.shape[1], pixels.shape[0]), pixels.dtype

    def _decode(self, file: Path) -> np.ndarray:
        """RGB. Shape ``[height, width, 3]``, bytes or float32 in 0..255."""
        image = open_image(file)
        size = self._resized(file, image.size)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        crop = self._recipe.crop
        if crop is not None:
            self._check_crop(file, size, crop)
            left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
            image = image.crop((left, top, left + crop, top + crop))
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)

    def _check_crop(self, file: Path, size: tuple[int, int], crop: int) -> None:
        if min(size) < crop:
            raise InputError(
                f"data.crop must be at most the shorter side of every image. Got {crop}, and "
                f"{shown(file)} would be {size[0]}x{size[1]}. Set data.resize to {crop} or more."
            )

    def _resized(self, file: Path, size: tuple[int, int]) -> tuple[int, int]:
        target = self._recipe.resize
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

    def _check_sizes(self, sizes: list[tuple[int, int]]) -> None:
        for file, size in zip(self._files, sizes, strict=True):
            if size != sizes[0]:
                raise InputError(
                    f"data needs images of one size. {shown(self._files[0])} is "
                    f"{sizes[0][0]}x{sizes[0][1]} and {shown(file)} is {size[0]}x{size[1]}. "
                    "Set data.resize and data.crop."
                )


class FolderSource:
    """Opens the folders of an ``image_folder`` recipe, which all have the same classes.

    Args:
        recipe: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
    """

    def __init__(self, recipe: ImageFolderData, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        self._first: tuple[str, list[str]] | None = None

    def load(self, split: Folder, key: str) -> FolderSamples:
        """Take the samples of one split.

        Args:
            split: Its folder.
            key: The split's key in the recipe, for messages.
        Returns:
            The samples.
        Raises:
            InputError: If the folder is missing, an image is broken or of another size, or the
                classes are not those of the splits before.
        """
        path = self._recipe.resolve(split.path, self._folder)
        check_exists(path, split.path, f"{key}.path", "folder")
        samples = FolderSamples(path, self._recipe, key)
        if self._first is None:
            self._first = key, samples.classes
        self._check_classes(samples.classes, key)
        return samples

    def _check_classes(self, classes: list[str], key: str) -> None:
        assert self._first is not None
        other, expected = self._first
        if classes != expected:
            differing = sorted(set(classes) ^ set(expected))
            raise InputError(
                f"{key}.path must have the same classes as {other}.path, because a class's number "
                "is its place in the alphabet. Only one of them has "
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


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(pixels)).digest()


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
