"""Depthwise convolutions, of floats and of bytes, against double precision."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from mfac_compress.export.sparse import (
    Activation,
    Rounding,
    Window,
    pack,
    pack_1x4,
    sparse_node,
)

OPERATORS = 24
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": lambda y: y.relu(),
    "clip": lambda y: y.clip(0, 6),
    "gelu": torch.nn.functional.gelu,
}


def _sums(x, weight, bias, window):
    """The convolution in double precision; exact for integers."""
    top, left, bottom, right = window.pads
    x = torch.nn.functional.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    weight, bias = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
    return torch.nn.functional.conv2d(x, weight, bias, stride=window.strides, groups=len(weight))


def _geometry(random):
    """Shapes of x and the weight, and a window, mostly those with kernels of their own."""
    channels, batch, stride = (int(n) for n in (random.integers(1, 9), *random.integers(1, 3, 2)))
    kernel = int(random.choice([3, 5]))
    height, width = (int(n) for n in random.integers(1, 40, 2))
    pads = [kernel // 2] * 4
    if random.random() < 0.5:  # those as large as the kernel are left to other kernels
        pads = [int(n) for n in random.integers(0, kernel + 1, 4)]
    height, width = max(height, kernel - pads[0] - pads[2]), max(width, kernel - pads[1] - pads[3])
    shape = (batch, channels, height, width)
    return shape, (channels, 1, kernel, kernel), Window((stride, stride), tuple(pads))


def _floats(random, name):
    """A node, its inputs and its result."""
    shape, weight_shape, window = _geometry(random)
    weight = random.standard_normal(weight_shape).astype(np.float32)
    weight *= random.random(weight.shape) < random.choice([0.3, 1.0])
    bias = random.standard_normal(len(weight)).astype(np.float32)
    x = random.standard_normal(shape).astype(np.float32)
    y = _sums(x, weight, bias, window)
    arrays = {f"{name}.x": x}
    if random.random() < 0.3:
        arrays[f"{name}.r"] = random.standard_normal(tuple(y.shape)).astype(np.float32)
        y = y + torch.from_numpy(arrays[f"{name}.r"])
    activation = str(random.choice(list(ACTIVATIONS)))
    node = sparse_node(
        name,
        ir.Value(name=f"{name}.x"),
        f"{name}.y",
        pack(weight, block=int(random.choice([1, 4])), group=len(weight)),
        bias=bias,
        residual=ir.Value(name=f"{name}.r") if f"{name}.r" in arrays else None,
        epilogue=Activation(activation, (0.0, 6.0) if activation == "clip" else None),
        window=window,
    )
    return node, arrays, ACTIVATIONS[activation](y).numpy()


def _bytes(random, name):
    shape, weight_shape, window = _geometry(random)
    weight = random.integers(-128, 128, weight_shape).astype(np.int8)
    x = random.integers(0, 256, shape).astype(np.uint8)
    if random.random() < 0.2:  # the largest sums
        weight[:], x[:] = random.choice([-128, 127]), 255
    bias = random.integers(-(2**29), 2**29, len(weight)).astype(np.int32)
    bias //= random.choice([1, 2**20])
    zeros = [int(n) for n in random.integers(0, 256, 2)]
    sums = _sums(x.astype(np.int64) - zeros[0], weight, bias, window).numpy()
    spread = np.maximum(np.abs(sums).max(axis=(0, 2, 3)), 1)
    scales = (random.uniform(50, 400, len(weight)) / spread).astype(np.float32)
    low, high = sorted(int(n) for n in random.choice([0, 3, 200, 255], 2))
    scaled = sums.astype(np.float32) * scales[:, None, None]
    y = np.clip(np.rint(scaled.astype(np.float64)) + zeros[1], low, high).astype(np.uint8)
    packed = (
        pack_1x4(weight, group=len(weight))
        if random.random() < 0.5
        else pack(weight, block=4, group=len(weight))
    )
    node = sparse_node(
        name,
        ir.Value(name=f"{name}.x"),
        f"{name}.y",
        packed,
        bias=bias,
        epilogue=Rounding(scales, *zeros, low, high),
        window=window,
    )
    return node, {f"{name}.x": x}, y


def _run(sessions, drawn, threads, kind=TensorProto.FLOAT):
    arrays = {name: array for _, of_one, _ in drawn for name, array in of_one.items()}
    names = [node.outputs[0].name for node, _, _ in drawn]
    session = sessions.open([node for node, _, _ in drawn], names, threads=threads, kind=kind)
    return zip(names, drawn, session.run(None, arrays), strict=True)


@pytest.mark.parametrize("seed", range(10))
def test_it_equals_double_precision(sessions_by_set, seed):
    random = np.random.default_rng(seed)
    drawn = [_floats(random, f"o{i}") for i in range(OPERATORS)]
    for instruction_set, sessions in sessions_by_set.items():
        for name, (_, _, expected), y in _run(sessions, drawn, 1 + seed % 3):
            where = f"{name}, {instruction_set}"
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5, err_msg=where)


@pytest.mark.parametrize("seed", range(10))
def test_bytes_equal_whole_numbers(sessions_by_set, seed):
    random = np.random.default_rng(seed)
    drawn = [_bytes(random, f"o{i}") for i in range(OPERATORS)]
    for instruction_set, sessions in sessions_by_set.items():
        for name, (_, _, expected), y in _run(sessions, drawn, 1 + seed % 3, TensorProto.UINT8):
            np.testing.assert_array_equal(y, expected, err_msg=f"{name}, {instruction_set}")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 7, 14, 17, 33])
def test_any_number_of_rows_is_right(sessions, width, stride):
    """Rows are computed some at a time, and those of the last channel without what comes after."""
    random = np.random.default_rng(width)
    drawn = []
    for height in range(1, 26):
        weight = random.standard_normal((3, 1, 3, 3)).astype(np.float32)
        x = random.standard_normal((1, 3, height, width)).astype(np.float32)
        window = Window((stride, stride), (1, 1, 1, 1))
        expected = _sums(x, weight, np.zeros(3, np.float32), window).numpy()
        name = f"h{height}"
        packed, value = pack(weight, group=3), ir.Value(name=f"{name}.x")
        node = sparse_node(name, value, f"{name}.y", packed, window=window)
        drawn.append((node, {f"{name}.x": x}, expected))
    for name, (_, _, expected), y in _run(sessions, drawn, 1):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("stride", "size"), [(1, 56), (2, 112), (2, 15), (1, 7)])
def test_many_channels_are_shared_among_threads(sessions, stride, size, threads):
    random = np.random.default_rng(0)
    weight = random.standard_normal((70, 1, 3, 3)).astype(np.float32)
    x = random.standard_normal((2, 70, size, size)).astype(np.float32)
    window = Window((stride, stride), (1, 1, 1, 1))
    node = sparse_node("c", ir.Value(name="x"), "y", pack(weight, group=70), window=window)
    (y,) = sessions.open([node], threads=threads).run(None, {"x": x})
    expected = _sums(x, weight, np.zeros(70, np.float32), window)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("stride", [1, 2])
def test_values_that_are_not_finite_reach_what_reads_them(sessions, value, stride):
    """Also through weights of 0, which are not stored: 0 times NaN is NaN."""
    weight = np.zeros((2, 1, 3, 3), np.float32)
    weight[:, 0, 1, 1] = 1
    x = np.zeros((1, 2, 9, 12), np.float32)
    x[0, 1, 5, 5] = value
    window = Window((stride, stride), (1, 1, 1, 1))
    node = sparse_node("c", ir.Value(name="x"), "y", pack(weight, group=2), window=window)
    (y,) = sessions.open([node]).run(None, {"x": x})
    expected = _sums(x, weight, np.zeros(2, np.float32), window).numpy().astype(np.float32)
    np.testing.assert_array_equal(y, expected)
    assert np.isnan(y).any()
    assert np.isfinite(y[0, 0]).all()
