"""NaN and infinities propagate as in ONNX Runtime's own dense operators."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from mfac_compress.export.sparse import Activation, Window, pack, sparse_node

BAD = (np.nan, np.inf, -np.inf)


def _sparse(random, *shape):
    weight = random.standard_normal(shape).astype(np.float32)
    return weight * (random.random(shape) < 0.2)


def _dense(sessions, nodes, arrays, inputs):
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info(name, 1, None) for name in inputs],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return sessions.load(graph).run(None, inputs)[0]


def _assert_same(found, expected):
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    there = ~np.isnan(expected)
    np.testing.assert_allclose(found[there], expected[there], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("rows", [1, 20, 100])
def test_linear(sessions, rows, bad):
    random = np.random.default_rng(0)
    weight, bias = _sparse(random, 30, 50), _sparse(random, 30)
    weight[7] = 1  # an output that reads everything gives an infinity, the others NaN
    x = random.standard_normal((rows, 50)).astype(np.float32)
    x[rows // 2, 13] = bad
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    expected = _dense(sessions, nodes, {"w": weight, "b": bias}, {"x": x})
    assert not np.isfinite(expected).all()
    found = sessions.open([sparse_node("l", ir.Value(name="x"), "y", pack(weight), bias=bias)])
    _assert_same(found.run(None, {"x": x})[0], expected)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("layout", ["nchw", "planes"])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("width", [14, 16])
def test_conv_chain(sessions, layout, batch, bad, activation, width):
    random = np.random.default_rng(0)
    first, second = _sparse(random, 12, 6, 3, 3), _sparse(random, 8, 12, 3, 3)
    x = random.standard_normal((batch, 6, 9, width)).astype(np.float32)
    x[batch // 2, 2, 0, 13] = bad
    around = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], **around)]
    middle = "c"
    if activation == "relu":
        nodes.append(helper.make_node("Relu", ["c"], ["a"]))
        middle = "a"
    nodes.append(helper.make_node("Conv", [middle, "v"], ["y"], **around))
    expected = _dense(sessions, nodes, {"w": first, "v": second}, {"x": x})
    assert not np.isfinite(expected).all()
    options = {"window": Window(pads=(1, 1, 1, 1)), "planes": {"m"} if layout == "planes" else ()}
    epilogue = Activation(activation)
    nodes = [
        sparse_node("a", ir.Value(name="x"), "m", pack(first), epilogue=epilogue, **options),
        sparse_node("b", ir.Value(name="m"), "y", pack(second, block=4), **options),
    ]
    found = sessions.open(nodes, ["y"])
    _assert_same(found.run(None, {"x": x})[0], expected)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", [(0, 0), (3, 2), (23, 23)])
@pytest.mark.parametrize("size", [(24, 24), (5, 3)])
def test_a_pointwise_convolution_that_reads_its_input_in_place(sessions, size, where, bad):
    random = np.random.default_rng(0)
    weight = _sparse(random, 8, 6, 1, 1)
    weight[:, 2] = 0  # so that no stored weight reads what is not finite
    x = random.standard_normal((2, 6, *size)).astype(np.float32)
    x[1, 2, min(where[0], size[0] - 1), min(where[1], size[1] - 1)] = bad
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    expected = _dense(sessions, nodes, {"w": weight}, {"x": x})
    assert np.isnan(expected).any()
    for threads in (1, 2):
        node = sparse_node("a", ir.Value(name="x"), "y", pack(weight), window=Window())
        found = sessions.open([node], threads=threads)
        _assert_same(found.run(None, {"x": x})[0], expected)


def test_an_overflow_between_two_convolutions_is_seen(sessions):
    first = np.full((4, 4, 1, 1), 1e20, dtype=np.float32)
    second = np.zeros((4, 4, 3, 3), dtype=np.float32)
    nodes = [
        sparse_node("a", ir.Value(name="x"), "m", pack(first), window=Window(), planes={"m"}),
        sparse_node(
            "b", ir.Value(name="m"), "y", pack(second),
            window=Window(pads=(1, 1, 1, 1)), planes={"m"},
        ),
    ]  # fmt: skip
    session = sessions.open(nodes, ["y"])
    x = np.ones((1, 4, 8, 8), dtype=np.float32)
    assert (session.run(None, {"x": x})[0] == 0).all()
    x[0, 0, 4, 4] = 1e20
    y = session.run(None, {"x": x})[0]
    assert np.isnan(y[:, :, 3:6, 3:6]).all()
    assert np.isnan(y).sum() == 4 * 9
