"""3x3 convolutions of each channel with itself only, against double precision."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mfac_compress.export.sparse import Activation, Window, pack, sparse_node

OPERATORS = 24
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": lambda y: y.relu(),
    "clip": lambda y: y.clip(0, 6),
    "gelu": torch.nn.functional.gelu,
}


def _expected(x, weight, bias, residual, *, stride, pads, activation):
    top, left, bottom, right = pads
    x = torch.nn.functional.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    weight, bias = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
    y = torch.nn.functional.conv2d(x, weight, bias, stride=stride, groups=len(weight))
    return ACTIVATIONS[activation](y if residual is None else y + torch.from_numpy(residual))


def _draw(random, name):
    """A node, its inputs and its result."""
    channels, batch, stride = (int(n) for n in (random.integers(1, 9), *random.integers(1, 3, 2)))
    height, width = (int(n) for n in random.integers(1, 40, 2))
    pads = [int(n) for n in random.integers(0, 4, 4)] if random.random() < 0.5 else [1] * 4
    height, width = max(height, 3 - pads[0] - pads[2]), max(width, 3 - pads[1] - pads[3])
    weight = random.standard_normal((channels, 1, 3, 3)).astype(np.float32)
    weight *= random.random(weight.shape) < random.choice([0.3, 1.0])
    bias = random.standard_normal(channels).astype(np.float32)
    x = random.standard_normal((batch, channels, height, width)).astype(np.float32)
    activation = str(random.choice(list(ACTIVATIONS)))
    options = {"stride": stride, "pads": pads, "activation": activation}
    y = _expected(x, weight, bias, None, **options)
    arrays = {f"{name}.x": x}
    if random.random() < 0.5:
        arrays[f"{name}.r"] = random.standard_normal(tuple(y.shape)).astype(np.float32)
        y = _expected(x, weight, bias, arrays[f"{name}.r"], **options)
    node = sparse_node(
        name,
        ir.Value(name=f"{name}.x"),
        f"{name}.y",
        pack(weight, block=int(random.choice([1, 4])), group=channels),
        bias=bias,
        residual=ir.Value(name=f"{name}.r") if f"{name}.r" in arrays else None,
        epilogue=Activation(activation, (0.0, 6.0) if activation == "clip" else None),
        window=Window((stride, stride), tuple(pads)),
    )
    return node, arrays, y.numpy()


@pytest.mark.parametrize("seed", range(10))
def test_it_equals_double_precision(sessions, seed):
    random = np.random.default_rng(seed)
    drawn = [_draw(random, f"o{i}") for i in range(OPERATORS)]
    arrays = {name: array for _, of_one, _ in drawn for name, array in of_one.items()}
    names = [node.outputs[0].name for node, _, _ in drawn]
    session = sessions.open([node for node, _, _ in drawn], names, threads=1 + seed % 3)
    for name, (_, _, expected), y in zip(names, drawn, session.run(None, arrays), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("stride", "size"), [(1, 56), (2, 112), (2, 15), (1, 7)])
def test_many_channels_are_shared_among_threads(sessions, stride, size, threads):
    random = np.random.default_rng(0)
    weight = random.standard_normal((70, 1, 3, 3)).astype(np.float32)
    x = random.standard_normal((2, 70, size, size)).astype(np.float32)
    window = Window((stride, stride), (1, 1, 1, 1))
    packed = pack(weight, group=70)
    node = sparse_node("c", ir.Value(name="x"), "y", packed, window=window)
    (y,) = sessions.open([node], threads=threads).run(None, {"x": x})
    options = {"stride": stride, "pads": (1, 1, 1, 1), "activation": "none"}
    expected = _expected(x, weight, np.zeros(70, np.float32), None, **options)
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
    expected = _expected(
        x, weight, np.zeros(2, np.float32), None, stride=stride, pads=[1] * 4, activation="none"
    )
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected.numpy()))
    np.testing.assert_array_equal(y, expected.numpy().astype(np.float32))
    assert np.isnan(y).any()
    assert np.isfinite(y[0, 0]).all()
