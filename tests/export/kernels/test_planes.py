"""Planes are as in docs/sparse-operators.md: pixels, zeros around them, and a flag for NaN."""

import numpy as np
import onnx_ir as ir
import pytest

from mfac_compress.export.sparse import Window, pack, planes_shape, sparse_node

FIRST_COLUMN = {8: 4, 16: 8, 32: 8}
AROUND = Window(pads=(1, 1, 1, 1))


def _pixels(planes, batch, channels, height, width):
    """Split planes into their pixels [N, C, H, W] and everything else except the spare planes."""
    rows = planes[: batch * channels].reshape(batch, channels, -1)
    stride = planes[0, 0].size
    first = stride + FIRST_COLUMN.get(width, 1)
    at = first + np.add.outer(stride * np.arange(height), np.arange(width))
    around = np.delete(rows, at.ravel(), axis=2)
    return rows[:, :, at], around


@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 24, 31, 32])
@pytest.mark.parametrize("block", [1, 4, 8, 16])
@pytest.mark.parametrize("source", ["nchw", "planes"])
def test_pixels_have_zeros_around_them(sessions, width, block, source):
    random = np.random.default_rng(width)
    x = random.standard_normal((2, 3, 5, width)).astype(np.float32)
    weight = random.standard_normal((18, 3, 3, 3)).astype(np.float32)
    bias = np.full(18, 2, np.float32)  # not 0 where nothing is added up
    identity = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    x_value, planes = ir.Value(name="x"), {"i", "p"}
    read = ir.Value(name="i") if source == "planes" else x_value
    nodes = [
        sparse_node("i", x_value, "i", pack(identity), window=Window(), planes=planes),
        sparse_node("p", read, "p", pack(weight, block=block), bias=bias, window=AROUND,
                    planes=planes),
        sparse_node("n", x_value, "n", pack(weight), bias=bias, window=AROUND),
    ]  # fmt: skip
    session = sessions.open(nodes, ["p", "n"])
    for _ in range(2):  # the second time on memory that has been used
        planes, expected = session.run(None, {"x": x})
        assert planes.shape == planes_shape(2, 18, 5, width)
        pixels, around = _pixels(planes, 2, 18, 5, width)
        np.testing.assert_allclose(pixels, expected, rtol=1e-5, atol=1e-5)
        assert not around.any()
        assert not planes[36:].ravel()[:32].any()
