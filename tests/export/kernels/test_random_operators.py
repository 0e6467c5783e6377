"""Thousands of random operators equal NumPy in double precision, more in the long form."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from mfac_compress.export.sparse import Activation, Window, pack, sparse_node

OPERATORS = 32  # in a graph; 1,024 for each instruction set, and 3,072 more in the long form
KEPT = (0.0, 0.02, 0.1, 0.3, 1.0)


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x: np.clip(x, -0.5, 0.75),
    "gelu": _gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def _epilogue(kind):
    return Activation(kind, (-0.5, 0.75) if kind == "clip" else None)


def _weight(random, shape):
    kind = random.integers(4)
    weight = random.standard_normal(shape).astype(np.float32)
    if kind == 0:  # a single weight
        index = tuple(int(random.integers(size)) for size in shape)
        single = np.zeros(shape, dtype=np.float32)
        single[index] = weight[index]
        return single
    weight *= random.random(shape) < random.choice(KEPT)
    if kind == 1:  # outputs without any
        weight[random.random(shape[0]) < 0.5] = 0
    return weight


def _floats(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


class _Linear:
    def __init__(self, random, name):
        outputs, inputs = (int(n) for n in random.integers(1, [40, 90]))
        leading = [(), (1,), (int(random.integers(1, 65)),), (2, 1, 3)][random.integers(4)]
        self.weight = _weight(random, (outputs, inputs))
        self.arrays = {f"{name}.x": _floats(random, *leading, inputs)}
        self.bias = _floats(random, outputs) if random.random() < 0.5 else None
        self.activation = str(random.choice(list(ACTIVATIONS)))
        y = self.arrays[f"{name}.x"].astype(np.float64) @ self.weight.T.astype(np.float64)
        y = y if self.bias is None else y + self.bias
        residual = f"{name}.r" if random.random() < 0.5 else None
        if residual:
            self.arrays[residual] = _floats(random, *y.shape)
            y = y + self.arrays[residual]
        self.expected = {f"{name}.y": ACTIVATIONS[self.activation](y)}
        self.nodes = [
            sparse_node(
                name,
                ir.Value(name=f"{name}.x"),
                f"{name}.y",
                pack(self.weight, block=int(random.choice([1, 4, 8, 16]))),
                bias=self.bias,
                residual=ir.Value(name=residual) if residual else None,
                epilogue=_epilogue(self.activation),
            )
        ]


def _conv(x, weight, strides, pads, dilations, group):
    """Return a convolution in double precision, by windows."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), pads[0::2], pads[1::2]))
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    if any(size < need for size, need in zip(x.shape[2:], reach, strict=True)):
        return None
    windows = sliding_window_view(x, reach, axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    windows = windows[..., :: dilations[0], :: dilations[1]]
    parts = zip(np.split(windows, group, 1), np.split(weight, group), strict=True)
    return np.concatenate([np.einsum("nchwyx,ocyx->nohw", a, w) for a, w in parts], axis=1)


def _identity(name, x, y, channels, planes):
    weight = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    return sparse_node(name, ir.Value(name=x), y, pack(weight), window=Window(), planes=planes)


class _Conv:
    def __init__(self, random, name):
        y = None
        while y is None:
            self._draw(random)
            x = _floats(random, *self.shape)
            y = _conv(x, self.weight, self.strides, self.pads, self.dilations, self.group)
        self.arrays = {f"{name}.x": x}
        bias = _floats(random, len(self.weight)) if random.random() < 0.5 else None
        y = y if bias is None else y + bias[:, None, None]
        activation = str(random.choice(list(ACTIVATIONS)))
        residual = f"{name}.r" if random.random() < 0.5 else None
        if residual:
            self.arrays[residual] = _floats(random, *y.shape)
            y = y + self.arrays[residual]
        self.expected = {f"{name}.y": ACTIVATIONS[activation](y)}

        # An identity converts to planes, and another one back.
        planes = {end: bool(random.integers(2)) for end in ("x", "r", "y")}
        at = {end: f"{name}.{end}" + (".planes" if planes[end] else "") for end in planes}
        in_planes = {at[end] for end in planes if planes[end]}
        self.nodes = []
        sources = {"x": self.shape[1]} | ({"r": y.shape[1]} if residual else {})
        for end, channels in sources.items():
            if planes[end]:
                self.nodes.append(
                    _identity(f"{name}.to.{end}", f"{name}.{end}", at[end], channels, in_planes)
                )
        self.nodes.append(
            sparse_node(
                name,
                ir.Value(name=at["x"]),
                at["y"],
                pack(self.weight, block=int(random.choice([1, 4, 8, 16])), group=self.group),
                bias=bias,
                residual=ir.Value(name=at["r"]) if residual else None,
                epilogue=_epilogue(activation),
                window=Window(self.strides, self.pads, self.dilations),
                planes=in_planes,
            )
        )
        if planes["y"]:
            self.nodes.append(
                _identity(f"{name}.from.y", at["y"], f"{name}.y", y.shape[1], in_planes)
            )

    def _draw(self, random):
        self.group = int(random.choice([1, 1, 1, 2, 3]))
        inputs, outputs = (int(n) for n in random.integers(1, 10, 2))
        batch = int(random.choice([1, 1, 2, 9, 64], p=[0.4, 0.2, 0.2, 0.18, 0.02]))
        height, width = (int(n) for n in random.integers(1, 5 if batch == 64 else 20, 2))
        if random.random() < 0.4:  # the widths that planes align
            width = int(random.choice([8, 16, 32]))
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


@pytest.mark.parametrize("operator", [_Linear, _Conv], ids=["linear", "conv"])
@pytest.mark.parametrize(
    "seed", [*range(16), *(pytest.param(n, marks=pytest.mark.long) for n in range(16, 64))]
)
def test_it_equals_double_precision(sessions_by_set, operator, seed):
    random = np.random.default_rng(seed)
    drawn = [operator(random, f"o{i}") for i in range(OPERATORS)]
    arrays = {name: array for one in drawn for name, array in one.arrays.items()}
    expected = {name: array for one in drawn for name, array in one.expected.items()}
    nodes = [node for one in drawn for node in one.nodes]
    for instruction_set, sessions in sessions_by_set.items():
        session = sessions.open(nodes, list(expected), threads=1 + seed % 4)
        for name, y in zip(expected, session.run(None, arrays), strict=True):
            where = f"{name}, {instruction_set}"
            np.testing.assert_allclose(y, expected[name], rtol=1e-5, atol=2e-5, err_msg=where)
