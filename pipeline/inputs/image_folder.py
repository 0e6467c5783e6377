"""Data in folders of images: ``path/class/image.png``."""

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.splits import channelwise
from mfac_compress.pipeline.recipe.schema import Folder, ImageFolderData

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Files that count as images; others are passed over."""

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are no images, or damaged ones."""


class FolderSamples:
    """Images decoded when they are asked for, as RGB of one size.

    Args:
        folder: Where the classes are.
        recipe: Size, mean and std.
        key: The split's key in the recipe.
    """

    def __init__(self, folder: Path, recipe: ImageFolderData, key: str) -> None:
        self._folder, self._recipe = folder, recipe
        self.classes = _classes(folder, key)
        found = [_images(folder / name, key) for name in self.classes]
        self._files = [file for files in found for file in files]
        self._y = torch.tensor([label for label, files in enumerate(found) for _ in files])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            scanned = list(pool.map(self._scan, self._files))
        self.digests = [digest for digest, _ in scanned]
        self._check_sizes([size for _, size in scanned])
        facts = (self.classes, recipe.resize, recipe.crop, recipe.mean, recipe.std)
        digest = hashlib.sha256(b"".join(self.digests))
        digest.update(self._y.numpy())
        digest.update(repr(facts).encode())
        self.fingerprint = digest.hexdigest()

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        # Decoding leaves Python's lock, so threads do without copies between processes.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(self._decode, [self._files[at] for at in positions]))
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return x, self._y[list(positions)]

    def normalise(self, x: Tensor) -> Tensor:
        return channelwise(x, 255.0, self._recipe.mean, self._recipe.std)

    def describe(self, position: int) -> str:
        return str(self._files[position])

    def _scan(self, file: Path) -> tuple[bytes, tuple[int, int]]:
        try:
            content = file.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                size = image.size
        except _UNREADABLE as error:
            raise InputError(_broken(file, error)) from error
        return hashlib.sha256(content).digest(), self._final_size(file, size)

    def _final_size(self, file: Path, size: tuple[int, int]) -> tuple[int, int]:
        size = self._resized(size)
        crop = self._recipe.crop
        if crop is None:
            return size
        if min(size) < crop:
            raise InputError(
                f"data.crop must be at most the shorter side of every image. Got {crop}, and "
                f"{file} would be {size[0]}x{size[1]}. Set data.resize to {crop} or more."
            )
        return crop, crop

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        target = self._recipe.resize
        if target is None:
            return size
        width, height = size
        longer = max(1, int(target * max(size) / min(size)))
        return (target, longer) if width <= height else (longer, target)

    def _check_sizes(self, sizes: list[tuple[int, int]]) -> None:
        for file, size in zip(self._files, sizes, strict=True):
            if size != sizes[0]:
                raise InputError(
                    f"data needs images of one size. {self._files[0]} is "
                    f"{sizes[0][0]}x{sizes[0][1]} and {file} is {size[0]}x{size[1]}. "
                    "Set data.resize and data.crop."
                )

    def _decode(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except _UNREADABLE as error:
            raise InputError(_broken(file, error)) from error
        size = self._resized(image.size)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        crop = self._recipe.crop
        if crop is not None:
            left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
            image = image.crop((left, top, left + crop, top + crop))
        return np.asarray(image)


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
        path = (self._folder / Path(split.path).expanduser()).resolve()
        if not os.path.isdir(path):  # unlike Path's, False for a name that is too long
            raise InputError(
                f"{key}.path must be a folder that exists. Got {split.path!r}, looked for {path}. "
                "Relative paths start at the recipe's folder."
            )
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
                f"is its place in the alphabet. Only one of them has {', '.join(differing[:10])}."
            )


def _classes(folder: Path, key: str) -> list[str]:
    found = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    classes = sorted(name for name in found if not name.startswith("."))
    if not classes:
        raise InputError(f"{key}.path must have a sub-folder for each class. {folder} has none.")
    return classes


def _images(folder: Path, key: str) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(
            f"{key}.path must have images for each class. {folder} has no file with one of "
            f"{', '.join(SUFFIXES)}."
        )
    return files


def _broken(file: Path, error: BaseException) -> str:
    return (
        f"{file} must be an image that can be read. It cannot ({error}). Mend or remove the file."
    )
