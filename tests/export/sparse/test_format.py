"""Packed weights contain the same values as dense ones."""

import numpy as np
import pytest

from mfac_compress.export.sparse import pack


def _unpack(packed):
    """The dense weight."""
    outputs, size = packed.shape[0] // packed.group, packed.block.size
    blocks = -(-outputs // size)
    inputs = int(np.prod(packed.shape[1:]))
    matrix = np.zeros((packed.group * blocks, size, inputs), dtype=packed.values.dtype)
    rows = np.repeat(np.arange(len(matrix)), np.diff(packed.starts))
    matrix[rows, :, packed.indices] = packed.values
    matrix = matrix.reshape(packed.group, blocks * size, inputs)
    return matrix[:, :outputs].reshape(packed.shape)


@pytest.mark.parametrize("block", [1, 4, 8, 16])
@pytest.mark.parametrize("shape", [(1, 1), (10, 7), (33, 64), (12, 3, 3, 3), (6, 2, 1, 5)])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("kept", [0.0, 0.1, 1.0])
def test_unpacking_returns_the_weight(block, shape, group, kept):
    random = np.random.default_rng(0)
    weight = random.standard_normal(shape).astype(np.float32) * (random.random(shape) < kept)
    if shape[0] % group:
        with pytest.raises(ValueError, match="group must divide"):
            pack(weight, block=block, group=group)
        return
    packed = pack(weight, block=block, group=group)
    np.testing.assert_array_equal(_unpack(packed), weight)
    assert packed.values.shape == (len(packed.indices), block)
    for first, last in zip(packed.starts[:-1], packed.starts[1:], strict=True):
        assert (np.diff(packed.indices[first:last]) > 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (10, 7), (12, 3, 3, 3), (6, 2, 5)])
def test_bytes_are_stored_as_floats_are(shape):
    random = np.random.default_rng(0)
    weight = (random.integers(-128, 128, shape) * (random.random(shape) < 0.3)).astype(np.int8)
    packed, floats = pack(weight, block=4), pack(weight.astype(np.float32), block=4)
    np.testing.assert_array_equal(_unpack(packed), weight)
    assert packed.values.dtype == np.int8
    for name in ("values", "indices", "starts"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(floats, name))


def test_an_input_is_stored_once_for_a_block():
    weight = np.zeros((4, 8), dtype=np.float32)
    weight[0, 3] = weight[2, 3] = weight[1, 5] = 1
    packed = pack(weight, block=4)
    assert packed.indices.tolist() == [3, 5]
    assert packed.values.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("weight", "block", "message"),
    [
        (np.ones((2, 2), np.float32), 2, "block must be one of"),
        (np.ones((2, 2), np.int8), 1, "block must be one of"),
        (np.ones((2, 2)), 1, "float32"),
        (np.ones(2, np.float32), 1, "float32"),
        (np.ones((0, 2), np.float32), 1, "not empty"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight, block, message):
    with pytest.raises(ValueError, match=message):
        pack(weight, block=block)
