"""Quantised results depend neither on the number of threads nor on other calls."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from mfac_compress.export.sparse import Rounding, Window, pack, pack_1x4, sparse_node

SHAPES = ((90, 70, 3, 3), (40, 90, 3, 3), (50, 40, 1, 1))


def _blocks(weight):
    return pack(weight, block=4)


@pytest.fixture(params=[_blocks, pack_1x4], ids=["blocks", "quads"])
def form(request):
    """Packs a weight in one of the formats."""
    return request.param


def _packed(form, random, *shape):
    weight = random.integers(-128, 128, shape) * (random.random(shape) < 0.1)
    return form(weight.astype(np.int8))


def _linear(form, random, inputs):
    scales = random.uniform(1e-4, 4e-4, 310).astype(np.float32)
    packed = _packed(form, random, 310, inputs)
    rounding = Rounding(scales, 100, 128)
    return [sparse_node("l", ir.Value(name="x"), "y", packed, epilogue=rounding)]


def _convs(form, random):
    """Several ranges of channels, several tiles, a stride."""
    packed = [_packed(form, random, *shape) for shape in SHAPES]
    rounding = [
        Rounding(random.uniform(1e-3, 4e-3, p.shape[0]).astype(np.float32), 100, 128)
        for p in packed
    ]
    around = (1, 1, 1, 1)
    windows = [Window(pads=around), Window(strides=(2, 2), pads=around), Window()]
    ends = [("x", "a"), ("a", "b"), ("b", "y")]
    return [
        sparse_node(f"to {y}", ir.Value(name=x), y, weight, window=window, epilogue=ends)
        for (x, y), weight, window, ends in zip(ends, packed, windows, rounding, strict=True)
    ]


def _bytes(random, *shape):
    return random.integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def open_quantised(sessions):
    return lambda nodes, threads=1: sessions.open(
        nodes, ["y"], threads=threads, kind=TensorProto.UINT8
    )


@pytest.mark.parametrize("inputs", [2000, 2001])
@pytest.mark.parametrize("rows", [1, 16, 40, 300])
def test_linear_is_the_same_with_any_number_of_threads(open_quantised, form, rows, inputs):
    random = np.random.default_rng(0)
    nodes, x = _linear(form, random, inputs), _bytes(random, rows, inputs)
    results = [open_quantised(nodes, n).run(None, {"x": x})[0] for n in range(1, 5)]
    assert results[0].std() > 10
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    last = open_quantised(nodes).run(None, {"x": x[-1:]})[0]
    np.testing.assert_array_equal(results[0][-1:], last)


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_conv_is_the_same_with_any_number_of_threads(open_quantised, form, batch):
    random = np.random.default_rng(0)
    nodes, x = _convs(form, random), _bytes(random, batch, 70, 21, 30)
    results = [open_quantised(nodes, n).run(None, {"x": x})[0] for n in range(1, 5)]
    assert results[0].std() > 10
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    last = open_quantised(nodes).run(None, {"x": x[-1:]})[0]
    np.testing.assert_array_equal(results[0][-1:], last)


def test_many_threads_share_one_session_with_inputs_of_many_sizes(open_quantised, form):
    random = np.random.default_rng(0)
    nodes, x = _convs(form, random), _bytes(random, 1, 70, 21, 30)
    session = open_quantised(nodes, threads=2)
    images = [x[:, :, :height, :width] for height in range(12, 18) for width in (13, 16, 30)]
    expected = [open_quantised(nodes).run(None, {"x": image})[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda image: session.run(None, {"x": image})[0], images * 6)
        for index, result in enumerate(found):
            np.testing.assert_array_equal(result, expected[index % len(images)])
