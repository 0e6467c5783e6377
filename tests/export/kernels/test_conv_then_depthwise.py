"""A convolution and the depthwise one after it in one node, against double precision."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn.functional import conv2d, gelu, pad

from mfac_compress.export.sparse import Activation, Depthwise, Window, pack, sparse_node

OPERATORS = 12
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": lambda y: y.relu(),
    "clip": lambda y: y.clip(-1, 1),
    "gelu": gelu,
}


def _activation(name):
    return Activation(name, (-1.0, 1.0) if name == "clip" else None)


def _conv(x, weight, bias, window, activation, group=1):
    top, left, bottom, right = window.pads
    bias = None if bias is None else torch.from_numpy(bias).double()
    weight = torch.from_numpy(weight).double()
    x = pad(x, (left, right, top, bottom))
    y = conv2d(x, weight, bias, stride=window.strides, dilation=window.dilations, groups=group)
    return ACTIVATIONS[activation.kind](y)


def _node(name, weight, wide, *, block=1, window, after, biases=(None, None), activations):
    depthwise = Depthwise(f"{name}.d", wide, after, biases[1], activations[1])
    return sparse_node(
        name,
        ir.Value(name=f"{name}.x"),
        f"{name}.y",
        pack(weight, block=block),
        window=window,
        bias=biases[0],
        epilogue=activations[0],
        depthwise=depthwise,
    )


def _draw(random, name):
    """A node, its input and its result."""
    batch, inputs, outputs = (int(n) for n in random.integers(1, [4, 9, 40]))
    kernel, stride = int(random.choice([1, 1, 3, 5])), int(random.integers(1, 3))
    tall, step = int(random.choice([3, 5])), int(random.integers(1, 3))
    window = Window((stride, stride), tuple(int(n) for n in random.integers(0, kernel, 4)))
    after = Window((step, step), tuple(int(n) for n in random.integers(0, tall, 4)))
    height, width = (int(n) for n in random.integers(5, 50, 2))
    size = [
        (n + sum(window.pads[i::2]) - kernel) // stride + 1 for i, n in enumerate((height, width))
    ]
    least = [tall - sum(after.pads[i::2]) for i in range(2)]
    height += max(least[0] - size[0], 0) * stride
    width += max(least[1] - size[1], 0) * stride
    height, width = max(height, kernel), max(width, kernel)
    weight = random.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32)
    weight *= random.random(weight.shape) < random.choice([0.2, 1.0])
    weight /= np.sqrt(weight[0].size, dtype=np.float32)
    wide = random.standard_normal((outputs, 1, tall, tall)).astype(np.float32) / tall
    biases = [
        random.standard_normal(outputs).astype(np.float32) if random.random() < 0.5 else None
        for _ in range(2)
    ]
    activations = [_activation(str(random.choice(list(ACTIVATIONS)))) for _ in range(2)]
    x = random.standard_normal((batch, inputs, height, width)).astype(np.float32)
    y = _conv(torch.from_numpy(x).double(), weight, biases[0], window, activations[0])
    y = _conv(y, wide, biases[1], after, activations[1], outputs)
    block = int(random.choice([1, 4, 8, 16]))
    node = _node(
        name, weight, wide, block=block, window=window, after=after,
        biases=biases, activations=activations,
    )  # fmt: skip
    return node, x, y.numpy()


@pytest.mark.parametrize("seed", range(12))
def test_it_equals_double_precision(sessions, seed):
    random = np.random.default_rng(seed)
    drawn = [_draw(random, f"o{i}") for i in range(OPERATORS)]
    names = [node.outputs[0].name for node, _, _ in drawn]
    session = sessions.open([node for node, _, _ in drawn], names, threads=1 + seed % 3)
    results = session.run(None, {f"{node.name}.x": x for node, x, _ in drawn})
    for (node, _, expected), y in zip(drawn, results, strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5, err_msg=node.name)


def _both(random, threads_shape, block=4, stride=1):
    """The node for both, and a node for each of the two, which read the same input."""
    outputs, inputs, size = threads_shape
    weight = random.standard_normal((outputs, inputs, 1, 1)).astype(np.float32)
    wide = random.standard_normal((outputs, 1, 3, 3)).astype(np.float32)
    window, after = Window(), Window((stride, stride), (1, 1, 1, 1))
    clip = _activation("clip")
    one = _node(
        "c", weight, wide, block=block, window=window, after=after, activations=(clip, clip)
    )
    first = sparse_node("a", ir.Value(name="c.x"), "z", pack(weight, block=block), window=window,
                        epilogue=clip)  # fmt: skip
    second = sparse_node("b", ir.Value(name="z"), "y", pack(wide, group=outputs), window=after,
                         epilogue=clip)  # fmt: skip
    x = random.standard_normal((2, inputs, size, size)).astype(np.float32)
    return one, [first, second], x


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "stride"), [((48, 16, 112), 2), ((37, 5, 56), 1), ((70, 9, 7), 1)]
)
def test_it_equals_two_nodes_to_the_bit(sessions, shape, stride, threads):
    one, two, x = _both(np.random.default_rng(0), shape, stride=stride)
    (expected,) = sessions.open(two, ["y"]).run(None, {"c.x": x})
    (y,) = sessions.open([one], threads=threads).run(None, {"c.x": x})
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_come_out_as_of_two_nodes(sessions, value):
    """In one of two images: also through weights that are not stored."""
    one, two, x = _both(np.random.default_rng(0), (9, 4, 12))
    x[1, 2, 5, 6] = value
    (expected,) = sessions.open(two, ["y"]).run(None, {"c.x": x})
    (y,) = sessions.open([one]).run(None, {"c.x": x})
    np.testing.assert_array_equal(y, expected)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).any() or value == np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.attributes.pop("depthwise_strides"), "depthwise_strides must"),
        (lambda n: n.attributes.pop("depthwise_activation"), "depthwise_activation must"),
        (lambda n: n.attributes.add(ir.AttrInt64s("depthwise_strides", [3, 3])), "strides 1 or 2"),
        (lambda n: n.attributes.add(ir.AttrInt64s("depthwise_pads", [3, 0, 0, 0])), "smaller than"),
        (lambda n: _constant(n, 5, (9, 1, 3, 4)), "3x3 or 5x5"),
        (lambda n: _constant(n, 5, (8, 1, 3, 3)), "depthwise_weights must be"),
        (lambda n: _constant(n, 5, (9, 9)), "depthwise_weights must be"),
    ],
)
def test_what_does_not_fit_is_refused(any_sessions, change, message):
    one, _, _ = _both(np.random.default_rng(0), (9, 4, 12))
    change(one)
    with pytest.raises(Exception, match=message):
        any_sessions.open([one])


def test_a_residual_is_refused():
    weight, wide = np.ones((2, 2, 1, 1), np.float32), np.ones((2, 1, 3, 3), np.float32)
    with pytest.raises(ValueError, match="SparseConvDepthwise has no residual"):
        sparse_node(
            "c", ir.Value(name="x"), "y", pack(weight), window=Window(),
            residual=ir.Value(name="r"), depthwise=Depthwise("d", wide, Window()),
        )  # fmt: skip


def _constant(node, place, shape):
    name = f"other{place}"
    array = np.zeros(shape, np.float32)
    node.replace_input_with(place, ir.Value(name=name, const_value=ir.tensor(array, name=name)))


def test_a_depthwise_bias_must_be_constant(any_sessions):
    weight, wide = np.ones((2, 2, 1, 1), np.float32), np.ones((2, 1, 3, 3), np.float32)
    none, bias = _activation("none"), np.ones(2, np.float32)
    node = _node(
        "c", weight, wide, window=Window(), after=Window(), biases=(None, bias),
        activations=(none, none),
    )  # fmt: skip
    node.replace_input_with(6, ir.Value(name="b"))
    session = any_sessions.open([node])
    with pytest.raises(Exception, match="depthwise_bias must be a constant"):
        session.run(None, {"c.x": np.ones((1, 2, 4, 9), np.float32), "b": bias})


def test_an_image_smaller_than_the_second_window_is_refused(any_sessions):
    weight, wide = np.ones((2, 2, 1, 1), np.float32), np.ones((2, 1, 5, 5), np.float32)
    none = _activation("none")
    node = _node("c", weight, wide, window=Window(), after=Window(), activations=(none, none))
    session = any_sessions.open([node])
    with pytest.raises(Exception, match="at least as large as the dilated kernel"):
        session.run(None, {"c.x": np.ones((1, 2, 4, 9), np.float32)})
