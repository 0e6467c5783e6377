"""Results depend neither on the number of threads nor on other calls."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest

from mfac_compress.export.sparse import Activation, Window, pack, sparse_node


def _sparse(random, *shape):
    weight = random.standard_normal(shape).astype(np.float32)
    return weight * (random.random(shape) < 0.1)


def _linear(random, rows, block):
    weight = _sparse(random, 310, 2000)
    gelu = Activation("gelu")
    node = sparse_node("l", ir.Value(name="x"), "y", pack(weight, block=block), epilogue=gelu)
    x = random.standard_normal((rows, 2000)).astype(np.float32)
    y = x.astype(np.float64) @ weight.T
    return [node], x, y


def _conv_chain(random, batch, block):
    """Several ranges of channels, several tiles, a stride, and planes between the operators."""
    weights = [
        _sparse(random, *shape) for shape in ((90, 70, 3, 3), (40, 90, 3, 3), (50, 40, 1, 1))
    ]
    first, second, third = (pack(weight, block=block) for weight in weights)
    planes, around, relu = {"a", "b"}, (1, 1, 1, 1), Activation("relu")
    x, a, b = (ir.Value(name=name) for name in "xab")
    near, apart = Window(pads=around), Window(strides=(2, 2), pads=around)
    nodes = [
        sparse_node("a", x, "a", first, window=near, planes=planes, epilogue=relu),
        sparse_node("b", a, "b", second, window=apart, planes=planes),
        sparse_node("c", b, "y", third, window=Window(), planes=planes),
    ]
    return nodes, random.standard_normal((batch, 70, 21, 30)).astype(np.float32), None


@pytest.mark.parametrize("block", [1, 8])
@pytest.mark.parametrize("rows", [1, 16, 40, 300])
def test_linear_is_bit_identical_with_any_number_of_threads(sessions, rows, block):
    nodes, x, y = _linear(np.random.default_rng(0), rows, block)
    results = [sessions.open(nodes, ["y"], threads=n).run(None, {"x": x})[0] for n in range(1, 5)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    gelu_is_identity = y > 6
    np.testing.assert_allclose(results[0][gelu_is_identity], y[gelu_is_identity], rtol=1e-4)


@pytest.mark.parametrize("block", [1, 8])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_conv_is_bit_identical_with_any_number_of_threads(sessions, batch, block):
    nodes, x, _ = _conv_chain(np.random.default_rng(0), batch, block)
    results = [sessions.open(nodes, ["y"], threads=n).run(None, {"x": x})[0] for n in range(1, 5)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    alone = sessions.open(nodes, ["y"]).run(None, {"x": x[-1:]})[0]
    np.testing.assert_allclose(results[0][-1:], alone, rtol=1e-4, atol=1e-4)


def test_many_threads_share_one_session_with_inputs_of_many_sizes(any_sessions):
    nodes, x, _ = _conv_chain(np.random.default_rng(0), 1, 1)
    session = any_sessions.open(nodes, ["y"], threads=2)
    images = [x[:, :, :height, :width] for height in range(12, 18) for width in (13, 16, 30)]
    expected = [any_sessions.open(nodes, ["y"]).run(None, {"x": image})[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda image: session.run(None, {"x": image})[0], images * 6)
        for index, result in enumerate(found):
            np.testing.assert_array_equal(result, expected[index % len(images)])
