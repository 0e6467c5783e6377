"""Random quantised operators are bit-identical to integer arithmetic, more in the long form."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto

from mfac_compress.export.sparse import (
    Addition,
    MaxPool,
    Rounding,
    Window,
    pack,
    pack_1x4,
    sparse_node,
)

OPERATORS = 32  # in a graph; 512 for each instruction set, and 1,536 more in the long form
KEPT = (0.0, 0.02, 0.1, 0.3, 1.0)
EXTREME = 0.1  # share of operators with nothing but the largest numbers


def _weight(random, shape):
    if random.random() < EXTREME:
        return np.full(shape, random.choice([-128, 127]), dtype=np.int8)
    weight = random.integers(-128, 128, shape).astype(np.int8)
    weight *= random.random(shape) < random.choice(KEPT)
    if random.random() < 0.25:  # outputs without any
        weight[random.random(shape[0]) < 0.5] = 0
    return weight


def _pack(random, weight, group=1):
    """In either format."""
    if random.random() < 0.3:
        return pack_1x4(weight, group=group)
    return pack(weight, block=4, group=group)


def _bytes(random, *shape):
    if random.random() < EXTREME:
        return np.full(shape, random.choice([0, 255]), dtype=np.uint8)
    return random.integers(0, 256, shape).astype(np.uint8)


def _rounding(random, sums, axis):
    """Scales with which the sums cover the bytes and more."""
    spread = np.maximum(np.abs(sums).max(axis=tuple(a for a in range(sums.ndim) if a != axis)), 1)
    scales = (random.uniform(50, 400, sums.shape[axis]) / spread).astype(np.float32)
    if random.random() < EXTREME:  # sums that leave 32 bits when they are scaled
        scales *= np.float32(1e8)
    low, high = sorted(int(n) for n in random.integers(0, 256, 2))
    bounds = (low, high) if random.random() < 0.3 else (0, 255)
    return Rounding(scales, int(random.integers(256)), int(random.integers(256)), *bounds)


def _rounded(sums, rounding, axis):
    """The specified result, in float32 as specified."""
    shape = [-1 if a == axis else 1 for a in range(sums.ndim)]
    scaled = sums.astype(np.float32) * rounding.scales.reshape(shape)
    y = np.rint(scaled.astype(np.float64)) + rounding.y_zero_point
    return np.clip(y, rounding.low, rounding.high).astype(np.uint8)


def _bias(random, outputs):
    if random.random() < 0.5:
        return None
    return random.integers(-30000, 30000, outputs).astype(np.int32)


class _Linear:
    def __init__(self, random, name):
        outputs, inputs = (int(n) for n in random.integers(1, [70, 90]))
        rows = int(random.integers(1, 5) if random.random() < 0.4 else random.integers(1, 140))
        leading = [(rows,), (2, 1, rows), (1, rows)][random.integers(3)]
        weight = _weight(random, (outputs, inputs))
        x = _bytes(random, *leading, inputs)
        bias = _bias(random, outputs)
        rounding = _rounding(random, x.astype(np.int64) @ weight.T.astype(np.int64), x.ndim - 1)
        sums = (x.astype(np.int64) - rounding.x_zero_point) @ weight.T.astype(np.int64)
        sums = sums if bias is None else sums + bias
        self.arrays = {f"{name}.x": x}
        self.expected = {f"{name}.y": _rounded(sums, rounding, x.ndim - 1)}
        x = ir.Value(name=f"{name}.x")
        weights = _pack(random, weight)
        self.nodes = [sparse_node(name, x, f"{name}.y", weights, epilogue=rounding, bias=bias)]


def _conv(x, zero_point, weight, strides, pads, dilations, group):
    """Return a convolution in integers, by windows; None if the window is larger."""
    x = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (0, 0), pads[0::2], pads[1::2]))
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    if any(size < need for size, need in zip(x.shape[2:], reach, strict=True)):
        return None
    windows = sliding_window_view(x, reach, axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    windows = windows[..., :: dilations[0], :: dilations[1]]
    parts = zip(np.split(windows, group, 1), np.split(weight.astype(np.int64), group), strict=True)
    return np.concatenate([np.einsum("nchwyx,ocyx->nohw", a, w) for a, w in parts], axis=1)


def _addition(random):
    """One that covers the bytes and more."""
    shift = int(random.integers(0, 23))
    most = min(2**15, 4 * 2**shift)
    factors = (int(n) for n in random.integers(0, most, 2))
    offset = int(random.integers(-255, 256)) * 2**shift + int(random.integers(2**shift))
    low, high = sorted(int(n) for n in random.integers(0, 256, 2))
    bounds = (low, high) if random.random() < 0.3 else (0, 255)
    if random.random() < EXTREME:
        extreme = 2**31 - 2**25
        return Addition(2**15 - 1, 2**15 - 1, int(random.choice([-extreme, extreme])), 22, *bounds)
    return Addition(*factors, offset, shift, *bounds)


def _added(y, residual, addition):
    """The specified sum of bytes, in integers."""
    terms = y.astype(np.int64) * addition.factor + residual * np.int64(addition.residual_factor)
    return np.clip((terms + addition.offset) >> addition.shift, addition.low, addition.high)


class _Conv:
    def __init__(self, random, name):
        sums = None
        while sums is None:
            self._draw(random)
            x = _bytes(random, *self.shape)
            zero_point = int(random.integers(256))
            sums = _conv(
                x, zero_point, self.weight, self.strides, self.pads, self.dilations, self.group
            )
        self.bias = bias = _bias(random, len(self.weight))
        self.window = Window(self.strides, self.pads, self.dilations)
        self.rounding = rounding = replace(_rounding(random, sums, 1), x_zero_point=zero_point)
        sums = sums if bias is None else sums + bias[:, None, None]
        self.arrays = {f"{name}.x": x}
        self.expected = {f"{name}.y": _rounded(sums, rounding, 1)}
        self.nodes = [self._node(name, _pack(random, self.weight, self.group), rounding)]

    def _node(self, name, packed, rounding, residual=None):
        return sparse_node(
            name,
            ir.Value(name=f"{name}.x"),
            f"{name}.y",
            packed,
            window=self.window,
            epilogue=rounding,
            bias=self.bias,
            residual=residual,
        )

    def _node_then(self, name, then, residual=None):
        """In blocks of outputs, with an operation on the bytes."""
        packed = pack(self.weight, block=4, group=self.group)
        return self._node(name, packed, replace(self.rounding, then=then), residual)

    def _draw(self, random):
        self.group = int(random.choice([1, 1, 1, 2, 3]))
        inputs, outputs = (int(n) for n in random.integers(1, [20, 10]))
        batch = int(random.choice([1, 2, 9], p=[0.6, 0.2, 0.2]))
        height, width = (int(n) for n in random.integers(1, 24, 2))
        self.shape = (batch, inputs * self.group, height, width)
        self.strides, self.dilations, self.pads = (1, 1), (1, 1), (1, 1, 1, 1)
        kernel = (3, 3)
        kind = random.integers(4)
        if kind == 0:
            kernel, self.pads = (1, 1), (0, 0, 0, 0)
        if kind >= 2:
            kernel = tuple(int(n) for n in random.integers(1, 6, 2))
            self.strides = tuple(int(n) for n in random.integers(1, 4, 2))
            self.dilations = tuple(int(n) for n in random.integers(1, 4, 2))
            self.pads = tuple(int(n) for n in random.integers(0, 4, 4))
        self.weight = _weight(random, (outputs * self.group, inputs, *kernel))


class _ConvAdd(_Conv):
    """A convolution in blocks of outputs, with a residual of bytes."""

    def __init__(self, random, name):
        super().__init__(random, name)
        ((y, bytes_before),) = self.expected.items()
        residual, addition = _bytes(random, *bytes_before.shape), _addition(random)
        self.arrays[f"{name}.r"] = residual
        self.expected[y] = _added(bytes_before, residual, addition).astype(np.uint8)
        self.nodes = [self._node_then(name, addition, ir.Value(name=f"{name}.r"))]


def _pool(random, size):
    """One that fits into an image of a size."""
    while True:
        kernel, strides = (tuple(int(n) for n in random.integers(1, 4, 2)) for _ in range(2))
        pads = tuple(int(random.integers(0, side)) for side in kernel * 2)
        if all(size[a] + pads[a] + pads[a + 2] >= kernel[a] for a in range(2)):
            return MaxPool(kernel, strides, pads)


def _pooled(y, pool):
    """The largest bytes of all windows."""
    padded = np.pad(y, ((0, 0), (0, 0), pool.pads[0::2], pool.pads[1::2]))
    windows = sliding_window_view(padded, pool.kernel, axis=(2, 3))
    return windows[:, :, :: pool.strides[0], :: pool.strides[1]].max(axis=(4, 5))


class _ConvMaxPool(_Conv):
    """A convolution in blocks of outputs, whose result is pooled."""

    def __init__(self, random, name):
        super().__init__(random, name)
        ((y, image),) = self.expected.items()
        pool = _pool(random, image.shape[2:])
        self.expected[y] = _pooled(image, pool)
        self.nodes = [self._node_then(name, pool)]


KINDS = {"linear": _Linear, "conv": _Conv, "add": _ConvAdd, "pool": _ConvMaxPool}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(n, marks=pytest.mark.long) for n in range(8, 32))]
)
def test_it_equals_whole_numbers(sessions_by_set, kind, seed):
    random = np.random.default_rng(seed)
    drawn = [KINDS[kind](random, f"o{i}") for i in range(OPERATORS)]
    arrays = {name: array for one in drawn for name, array in one.arrays.items()}
    expected = {name: array for one in drawn for name, array in one.expected.items()}
    nodes = [node for one in drawn for node in one.nodes]
    names, threads = list(expected), 1 + seed % 4
    for instruction_set, sessions in sessions_by_set.items():
        session = sessions.open(nodes, names, threads=threads, kind=TensorProto.UINT8)
        for name, y in zip(names, session.run(None, arrays), strict=True):
            np.testing.assert_array_equal(y, expected[name], err_msg=f"{name}, {instruction_set}")
