"""One image file that nobody vouches for, as RGB.

Pillow tells a file's format by its content: an EPS named ``0.png`` would be given to Ghostscript.
And it brings all that has more than 8 bits to 8 by cutting off what is above white.
"""

import io
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_regular
from mfac_compress.pipeline.quoting import shown

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's names of the formats that are read, and the suffixes of such files."""

_MOST_PIXELS = 1 << 26
"""67 million: cameras make fewer. Pillow warns from 89 million on."""

_MOST_BYTES = 1 << 29
_MOST_SCANS = 100
"""Of a progressive JPEG. Usual ones have ten, and each goes through all pixels again."""

_MANY_PIXELS, _MANY_BYTES = 1 << 23, 1 << 25
_ONE_LARGE = threading.RLock()
"""Held while a large image is decoded, so that memory holds one of them and not one a thread."""


def open_image(path: Path) -> Image.Image:
    """Decode an image.

    Args:
        path: Of a file in one of :data:`FORMATS`.
    Returns:
        RGB; or, of gray images that use more than 8 bits, one channel of float32, 0..255.
    Raises:
        InputError: If it is no such file, damaged, has several pictures, too many pixels, or
            numbers of more than 8 bits in colour or of more than 16.
    """
    try:
        size = check_regular(path, "an image")
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, and {_MOST_BYTES:,} are the most")
        with _alone(size > _MANY_BYTES):
            return _decode(path.read_bytes())
    except InputError:
        raise
    except Exception as error:
        # Parsers of foreign bytes raise whatever they stumble over, MemoryError among it.
        said = shown(error) or type(error).__name__
        raise InputError(
            f"{shown(path)} must be an image that can be read. It cannot ({said}). Fix or remove "
            "the file."
        ) from error


def check_pixels(width: int, height: int) -> None:
    """Refuse images that would fill the memory.

    Raises:
        ValueError: If there are too many pixels.
    """
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"it would be {width}x{height} pixels, and {_MOST_PIXELS:,} are the most; make it "
            "smaller"
        )


def _alone(large: bool) -> AbstractContextManager[object]:
    return _ONE_LARGE if large else nullcontext()


def _decode(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=list(FORMATS)) as image:
        check_pixels(*image.size)
        if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MOST_SCANS:
            raise ValueError(f"it is made of more than {_MOST_SCANS} scans")
        if _is_sequence(image):
            raise ValueError("it holds more than one picture; save each in a file of its own")
        gray16 = _is_gray16(image)
        with _alone(image.width * image.height > _MANY_PIXELS):
            if gray16:
                return _scaled(np.asarray(image))
            return image.convert("RGB")


def _is_sequence(image: Image.Image) -> bool:
    if image.format != "TIFF":
        # Phones put a preview or a second view behind the picture of a JPEG.
        return image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1
    try:
        image.seek(1)  # n_frames would go through all there are
    except EOFError:
        return False
    return True


def _is_gray16(image: Image.Image) -> bool:
    """Whether an image is gray with 16 bits, which can be scaled.

    Raises:
        ValueError: If it has more than 8 bits in another way.
    """
    bits = _bits(image)
    # Older versions of Pillow read such PNG files as 32 bits, of which they use 16.
    one_channel = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
    if one_channel and bits == 16:
        return True
    if one_channel or bits > 8 or image.mode in ("I", "F"):
        raise ValueError(
            f"its mode is {image.mode} with {bits} bits a channel, and only gray images may have "
            "more than 8, which are 16 unsigned ones; save it with 8, or use data.source arrays"
        )
    return False


def _bits(image: Image.Image) -> int:
    """Bits of a channel in the file; Pillow's mode tells of 8 where the file has 16."""
    if image.format == "TIFF":
        tags = image.tag_v2
        plain = tags.get(_SAMPLE_FORMAT, (1,)) == (1,) * len(tags.get(_SAMPLE_FORMAT, (1,)))
        inverted = tags.get(_PHOTOMETRIC) == 0
        bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
        # Pillow reads signed ones, and those for which 0 is white, as if they were not.
        return bits if bits <= 8 or (plain and not inverted) else 32
    if image.format not in ("PNG", "PPM") or not image.tile:
        return 8
    arguments = image.tile[0][3]
    raw, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    if image.format == "PPM" and image.mode == "F":
        return 32
    deep = ";16" in str(raw) or image.mode in ("I", "I;16")
    return 16 if deep or (image.format == "PPM" and max(rest, default=0) > 255) else 8


_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""


def _scaled(numbers: np.ndarray) -> Image.Image:
    """Bring 0..65535 to 0..255; to bytes where none is lost, so that equal pictures are equal."""
    if not (numbers % 257).any():
        return Image.fromarray((numbers // 257).astype(np.uint8)).convert("RGB")
    return Image.fromarray((numbers / 257).astype(np.float32))
