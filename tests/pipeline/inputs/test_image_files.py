"""Images keep their levels; what is no single image of a format that is read is refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.image_files import open_image

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).round().astype(np.uint16)
NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def refusal(path):
    with pytest.raises(InputError) as caught:
        open_image(path)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_gray_images_of_16_bits_keep_all_levels(suffix, tmp_path):
    Image.fromarray(RAMP).save(tmp_path / f"0.{suffix}")
    pixels = np.asarray(open_image(tmp_path / f"0.{suffix}"))
    assert np.allclose(pixels / 255, RAMP / 65535, atol=1e-6)


def test_an_image_of_16_bits_that_needs_only_8_is_that_of_8(tmp_path):
    gray = NOISE[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "0.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "0.png"))[..., 1], gray)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_the_format_does_not_change_the_pixels(suffix, tmp_path):
    Image.fromarray(NOISE).save(tmp_path / f"0.{suffix}")
    assert np.array_equal(np.asarray(open_image(tmp_path / f"0.{suffix}")), NOISE)


@pytest.mark.parametrize("dtype", ["i4", "f4"])
def test_images_of_32_bits_are_refused_by_file_and_mode(dtype, tmp_path):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "0.tif")
    message = refusal(tmp_path / "0.tif")
    assert "0.tif must be an image" in message
    assert f"mode is {'I' if dtype == 'i4' else 'F'} with 32 bits" in message


def _png(width, height, bits):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(min(height, 99) * (1 + width * bits * 3 // 8))))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


def test_colours_of_16_bits_are_refused(tmp_path):
    (tmp_path / "0.png").write_bytes(_png(8, 8, 8))
    open_image(tmp_path / "0.png")
    (tmp_path / "0.png").write_bytes(_png(8, 8, 16))
    assert "with 16 bits a channel" in refusal(tmp_path / "0.png")
    (tmp_path / "0.ppm").write_bytes(b"P6 8 8 1023\n" + bytes(384))
    assert "with 16 bits a channel" in refusal(tmp_path / "0.ppm")


def test_other_formats_are_refused_whatever_they_are_named(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # would raise when called
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (tmp_path / "0.png").write_bytes(eps)
    assert "cannot identify" in refusal(tmp_path / "0.png")
    Image.fromarray(NOISE).save(tmp_path / "1.png", "GIF")
    assert "cannot identify" in refusal(tmp_path / "1.png")


@pytest.mark.parametrize(("width", "height"), [(10**4, 8 * 10**3), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore:Image size")
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(width, height, tmp_path):
    (tmp_path / "0.png").write_bytes(_png(min(width, 10**4), 1, 8))
    content = bytearray((tmp_path / "0.png").read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "0.png").write_bytes(content)
    message = refusal(tmp_path / "0.png")
    assert "pixels" in message


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_file_of_several_pictures_is_refused(kind, tmp_path):
    pictures = [Image.fromarray(np.roll(NOISE, i)) for i in range(3)]
    pictures[0].save(tmp_path / "0.png", kind, save_all=True, append_images=pictures[1:])
    assert "more than one picture" in refusal(tmp_path / "0.png")


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "JPEG", progressive=True)
    (tmp_path / "0.jpg").write_bytes(stream.getvalue())
    open_image(tmp_path / "0.jpg")
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    (tmp_path / "0.jpg").write_bytes(content[:last] + content[last:-2] * 200 + content[-2:])
    assert "scans" in refusal(tmp_path / "0.jpg")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    assert "a pipe" in refusal(tmp_path / "0.png")


def test_a_file_that_cannot_be_an_image_by_its_size_is_not_read(tmp_path):
    with (tmp_path / "0.png").open("wb") as stream:
        stream.truncate(8 << 30)
    assert "are the most" in refusal(tmp_path / "0.png")
