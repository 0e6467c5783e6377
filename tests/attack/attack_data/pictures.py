"""Image files that are damaged, of another format, of many pixels, pictures or bits."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .case import EITHER, LOADED, REFUSED, Case, pictures_section
from .containers import spoil

_SIZE = (12, 9)


def picture(seed: int) -> Image.Image:
    """A picture of noise."""
    shape = (_SIZE[1], _SIZE[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_good(folder: Path) -> None:
    """Folders ``calibration`` and ``validation`` of two classes that share nothing."""
    for seed, split in enumerate(("calibration", "validation")):
        for label, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            picture(2 * seed + label).save(folder / split / name / "0.png")


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    """A PNG of any size and depth, whose pixels are zero and go on for 100 lines at most."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    line = bytes(1 + width * channels * bits // 8) if width < 10**7 else bytes(1000)
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(line * min(height, 100), 1))
    return b"\x89PNG\r\n\x1a\n" + head + more + pixels + _chunk(b"IEND", b"")


def _scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes many times."""
    content = _saved(picture(9).resize((640, 480)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def _frames(kind: str, count: int) -> bytes:
    pictures = [picture(20 + i) for i in range(count)]
    return _saved(pictures[0], kind, save_all=True, append_images=pictures[1:])


def _tiff(tags: dict[int, tuple[int, int, int]], pixels: bytes = bytes(400)) -> bytes:
    """A little-endian TIFF of any tags: number to (type, count, value)."""
    entries = b"".join(struct.pack("<HHII", tag, *values) for tag, values in sorted(tags.items()))
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags))
    return head + entries + struct.pack("<I", 8) + pixels


def _plain_tiff(**changes: tuple[int, int, int]) -> bytes:
    names = {"width": 256, "height": 257, "bits": 258, "packing": 259, "colour": 262}
    names |= {"strips": 273, "channels": 277, "rows": 278, "sizes": 279, "form": 339}
    tags = {256: (3, 1, 12), 257: (3, 1, 9), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    tags |= {273: (4, 1, 200), 277: (3, 1, 1), 278: (3, 1, 9), 279: (4, 1, 108)}
    return _tiff(tags | {names[name]: value for name, value in changes.items()})


def _gray(dtype: str, *, most: int) -> Image.Image:
    size = _SIZE[0] * _SIZE[1]
    return Image.fromarray(np.linspace(0, most, size).reshape(_SIZE[::-1]).astype(dtype))


def _bmp(offset: int, value: bytes) -> bytes:
    content = _saved(picture(5), "BMP")
    return content[:offset] + value + content[offset + len(value) :]


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(picture(8), "JPEG", exif=exif)


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 9\n%%EndComments\n(x) run\n%%EOF\n"
_XPM = b'/* XPM */\nstatic char *x[] = {\n"2 1 1 1",\n"a c #000000",\n"aa"\n};\n'

FILES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "no bytes": (lambda: b"", REFUSED),
    "one byte": (lambda: b"\x89", REFUSED),
    "text": (lambda: b"no image", REFUSED),
    "zeros": (lambda: bytes(10**6), REFUSED),
    "EPS": (lambda: _EPS, REFUSED),
    "PDF": (lambda: b"%PDF-1.4\n%%EOF", REFUSED),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", REFUSED),
    "XPM": (lambda: _XPM, REFUSED),
    "GIF": (lambda: _saved(picture(5), "GIF"), REFUSED),
    "moving GIF": (lambda: _frames("GIF", 5), REFUSED),
    "ICO": (lambda: _saved(picture(5), "ICO"), REFUSED),
    "TGA": (lambda: _saved(picture(5), "TGA"), REFUSED),
    "PCX": (lambda: _saved(picture(5), "PCX"), REFUSED),
    "DDS": (lambda: _saved(picture(5), "DDS"), REFUSED),
    "JPEG 2000": (lambda: _saved(picture(5), "JPEG2000"), REFUSED),
    "a JPEG": (lambda: _saved(picture(5), "JPEG"), LOADED),
    "a rotated JPEG": (_rotated, LOADED),
    "a BMP": (lambda: _saved(picture(5), "BMP"), LOADED),
    "a WebP": (lambda: _saved(picture(5), "WEBP"), LOADED),
    "a TIFF": (lambda: _saved(picture(5), "TIFF"), LOADED),
    "a PPM": (lambda: _saved(picture(5), "PPM"), LOADED),
    "black and white": (lambda: _saved(picture(5).convert("1"), "PNG"), LOADED),
    "a palette": (lambda: _saved(picture(5).convert("P"), "PNG"), LOADED),
    "a transparent palette": (
        lambda: _saved(picture(5).convert("P"), "PNG", transparency=bytes(range(256))),
        LOADED,
    ),
    "gray with transparency": (lambda: _saved(picture(5).convert("LA"), "PNG"), LOADED),
    "colour with transparency": (lambda: _saved(picture(5).convert("RGBA"), "PNG"), LOADED),
    "CMYK JPEG": (lambda: _saved(picture(5).convert("CMYK"), "JPEG"), LOADED),
    "CMYK TIFF": (lambda: _saved(picture(5).convert("CMYK"), "TIFF"), LOADED),
    "LAB TIFF": (lambda: _saved(Image.new("LAB", _SIZE, (9, 8, 7)), "TIFF"), EITHER),
    "moving PNG": (lambda: _frames("PNG", 3), REFUSED),
    "moving WebP": (lambda: _frames("WEBP", 3), REFUSED),
    "TIFF of pages": (lambda: _frames("TIFF", 3), REFUSED),
    "TIFF of 300 pages": (lambda: _frames("TIFF", 300), REFUSED),
    # Beside a calibration split of 8 bits; see test_image_files.py for those of one form.
    "gray of 16 bits": (lambda: _saved(_gray("u2", most=65535), "PNG"), REFUSED),
    "gray TIFF of 16 bits": (lambda: _saved(_gray("u2", most=65535), "TIFF"), REFUSED),
    "gray PPM of 16 bits": (lambda: _saved(_gray("u2", most=65535), "PPM"), REFUSED),
    "integers of 32 bits": (lambda: _saved(_gray("i4", most=10**6), "TIFF"), REFUSED),
    "floats": (lambda: _saved(_gray("f4", most=1), "TIFF"), REFUSED),
    "PFM": (lambda: _saved(_gray("f4", most=1), "PPM"), REFUSED),
    "colour PNG of 16 bits": (lambda: png(12, 9, bits=16), REFUSED),
    "colour and alpha of 16 bits": (lambda: png(12, 9, bits=16, colour=6), REFUSED),
    "gray and alpha of 16 bits": (lambda: png(12, 9, bits=16, colour=4), REFUSED),
    "colour PPM of 16 bits": (lambda: b"P6 12 9 65535\n" + bytes(648), REFUSED),
    "colour PPM of 10 bits": (lambda: b"P6 12 9 1023\n" + bytes(648), REFUSED),
    "gray PPM of 10 bits": (lambda: b"P5 12 9 1023\n" + bytes(range(216)), EITHER),
    "PNG of no bits": (lambda: png(12, 9, bits=0), REFUSED),
    "PNG of an unknown colour": (lambda: png(12, 9, colour=5), REFUSED),
    "PNG of no pixels": (lambda: png(0, 0), REFUSED),
    "PNG of 2^31 pixels a line": (lambda: png(2**31 - 1, 1), REFUSED),
    "PNG of 2^62 pixels": (lambda: png(2**31 - 1, 2**31 - 1), REFUSED),
    "PNG of 80 million pixels": (lambda: png(10000, 8000), REFUSED),
    "PNG of 150 million pixels": (lambda: png(15000, 10000), REFUSED),
    # What its pixels lack, Pillow takes for black.
    "PNG of 60 million pixels, cut off": (lambda: png(10000, 6000), EITHER),
    "a line of 60 million pixels": (lambda: png(6 * 10**6, 1), EITHER),
    "PNG with text of 100 MB": (
        lambda: png(12, 9, more=_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
        EITHER,
    ),
    "PNG with a profile of 100 MB": (
        lambda: png(12, 9, more=_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))),
        EITHER,
    ),
    "PNG with 20,000 chunks": (lambda: png(12, 9, more=_chunk(b"tEXt", b"a\0b") * 20000), EITHER),
    "PNG with an unknown chunk": (lambda: png(12, 9, more=_chunk(b"ABCD", b"")), EITHER),
    "PNG with frames that are not there": (
        lambda: png(12, 9, more=_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        EITHER,
    ),
    "JPEG of 5,000 scans": (lambda: _scans(5000), REFUSED),
    "JPEG of 30 scans": (lambda: _scans(20), EITHER),
    "JPEG without an end": (lambda: _saved(picture(5), "JPEG")[:-2], EITHER),
    "half a JPEG": (lambda: _saved(picture(5), "JPEG")[:400], REFUSED),
    "JPEG of a comment": (lambda: b"\xff\xd8" + b"\xff\xfe\xff\xffaaaa" * 1000, REFUSED),
    "JPEG of 0xff": (lambda: b"\xff\xd8" + b"\xff" * 10**6, REFUSED),
    "PPM without numbers": (lambda: b"P6\n", REFUSED),
    "PPM below zero": (lambda: b"P6 -5 -5 255\n" + bytes(75), REFUSED),
    "PPM of 10^10 pixels": (lambda: b"P6 99999 99999 255\n", REFUSED),
    "PPM of many digits": (lambda: b"P6 " + b"9" * 10**5 + b" 1 255\n", REFUSED),
    "PPM of a comment": (lambda: b"P6 #" + b"a" * 10**6, REFUSED),
    "PPM with a maximum of 0": (lambda: b"P6 12 9 0\n" + bytes(324), REFUSED),
    "PPM with a maximum of 70000": (lambda: b"P6 12 9 70000\n" + bytes(648), REFUSED),
    "PPM cut off": (lambda: b"P6 12 9 255\n" + bytes(100), REFUSED),
    "PPM in words": (lambda: b"P3 12 9 255\n" + b"a b c " * 108, REFUSED),
    "PPM in large words": (lambda: b"P2 12 9 255\n" + b"9" * 10**6, REFUSED),
    "PPM of 60 million pixels, cut off": (lambda: b"P3 10000 6000 255\n1 2 3\n", REFUSED),
    "PFM of no scale": (lambda: b"Pf\n12 9\nnan\n" + bytes(432), REFUSED),
    "BMP below zero": (
        lambda: _bmp(18, struct.pack("<ii", -12, -9)),
        REFUSED,
    ),
    "BMP of 2^30 lines": (
        lambda: _bmp(22, struct.pack("<i", 2**30)),
        REFUSED,
    ),
    "BMP of 12 bits a pixel": (
        lambda: _bmp(28, b"\x0c\x00"),
        REFUSED,
    ),
    "TIFF whose pages go round": (_plain_tiff, EITHER),
    "TIFF of no width": (lambda: _plain_tiff(width=(3, 1, 0)), REFUSED),
    "TIFF of 2^32 lines": (lambda: _plain_tiff(height=(4, 1, 2**32 - 1)), REFUSED),
    "TIFF of 12 bits": (lambda: _plain_tiff(bits=(3, 1, 12), sizes=(4, 1, 162)), REFUSED),
    "TIFF of 16 bits with a sign": (
        lambda: _plain_tiff(bits=(3, 1, 16), form=(3, 1, 2), sizes=(4, 1, 216)),
        REFUSED,
    ),
    "TIFF of 16 bits where 0 is white": (
        lambda: _plain_tiff(bits=(3, 1, 16), colour=(3, 1, 0), sizes=(4, 1, 216)),
        REFUSED,
    ),
    "TIFF of 2^32 channels": (lambda: _plain_tiff(channels=(4, 1, 2**32 - 1)), REFUSED),
    "TIFF of an unknown packing": (lambda: _plain_tiff(packing=(3, 1, 9999)), REFUSED),
    "TIFF of fax": (lambda: _plain_tiff(packing=(3, 1, 4)), EITHER),
    "TIFF of JPEG": (lambda: _plain_tiff(packing=(3, 1, 7)), EITHER),
    "TIFF with pixels beyond the end": (lambda: _plain_tiff(strips=(4, 1, 2**31)), REFUSED),
    "TIFF with a strip of 4 GB": (lambda: _plain_tiff(sizes=(4, 1, 2**32 - 1)), EITHER),
    "TIFF with 2^32 strips": (lambda: _plain_tiff(strips=(4, 2**32 - 1, 8)), REFUSED),
    "TIFF with bits in a list of 2^30": (lambda: _plain_tiff(bits=(3, 2**30, 8)), EITHER),
    "TIFF of nothing": (lambda: _tiff({}), REFUSED),
    "TIFF of text for numbers": (lambda: _plain_tiff(width=(2, 4, 8)), REFUSED),
    "WebP of nothing": (lambda: b"RIFF\x04\x00\x00\x00WEBP", REFUSED),
    "WebP of 4 GB": (lambda: b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(99), REFUSED),
}


def _written(folder: Path, content: bytes, **options: Any) -> dict[str, Any]:
    write_good(folder)
    # All of one size, so that it is not for another that a file is refused.
    section = pictures_section(**({"resize": 8, "crop": 8} | options))
    (folder / "validation" / "bee" / "1.png").write_bytes(content)
    return section


def _again(folder: Path, kind: str, suffix: str, **options: Any) -> dict[str, Any]:
    """The same picture in both splits, in another format."""
    write_good(folder)
    content = _saved(picture(0), kind, **options)
    (folder / "validation" / "ant" / f"1.{suffix}").write_bytes(content)
    return pictures_section()


def _again_in_16_bits(folder: Path) -> dict[str, Any]:
    write_good(folder)
    gray = np.asarray(picture(0).convert("L"))
    Image.fromarray(gray).save(folder / "calibration" / "ant" / "1.png")
    Image.fromarray(gray.astype("u2") * 257).save(folder / "validation" / "ant" / "1.png")
    return pictures_section()


def kinds() -> Iterator[Case]:
    """All kinds, each once."""
    for name, (content, expected) in FILES.items():
        yield Case(f"0.png: {name}", lambda f, c=content: _written(f, c()), expected)
    for kind, suffix, options in (
        ("PNG", "png", {"compress_level": 0}),
        ("BMP", "bmp", {}),
        ("TIFF", "tif", {}),
        ("PPM", "ppm", {}),
        ("WEBP", "webp", {"lossless": True}),
    ):
        yield Case(
            f"overlap: the same picture as {kind}",
            lambda f, k=kind, s=suffix, o=options: _again(f, k, s, **o),
        )
    yield Case("overlap: the same picture in 16 bits", _again_in_16_bits)
    long = lambda: _saved(Image.new("RGB", (1, 10**5)), "PNG")  # noqa: E731
    yield Case("resize: to 5 billion pixels", lambda f: _written(f, long(), resize=224))
    yield Case("crop: beyond the picture", lambda f: _written(f, b"", resize=None, crop=10))
    for value in (0, -1, 10**12, 2**70):
        yield Case(f"resize: {value}", lambda f, v=value: _written(f, b"", resize=v))


def damaged(seed: int) -> Case:
    """A picture with some bytes changed, cut or doubled."""
    return Case(f"damaged picture {seed}", lambda f: _damage(f, seed), EITHER)


def _damage(folder: Path, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    kind = draw.choice(["PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP"])
    mode = draw.choice(["RGB", "RGB", "L", "1"])
    options = {"TIFF": {"compression": draw.choice([None, "tiff_lzw", "tiff_deflate"])}}
    section = _written(folder, _saved(picture(seed).convert(mode), kind, **options.get(kind, {})))
    spoil(folder / "validation" / "bee" / "1.png", draw)
    return section
