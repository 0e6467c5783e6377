"""A convolution whose output takes its residual's memory gives what it gives elsewhere.

ONNX Runtime shares the memory only where both shapes are recorded in the file.
"""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mfac_compress.export.sparse import Activation, Window, pack, planes_shape, sparse_node

RELU = Activation("relu")
POINT, AROUND = Window(), Window(pads=(1, 1, 1, 1))
HALF, HALF_AROUND = Window(strides=(2, 2)), Window(pads=(1, 1, 1, 1), strides=(2, 2))
SHARED = ("r", "y")


def _sparse(random, *shape):
    weight = random.standard_normal(shape).astype(np.float32)
    return weight * (random.random(shape) < 0.3)


def _block(random, layout, block, middle, window):
    """A residual block: r = a(x), y = relu(c(relu(b(x))) + r), z = d(y)."""
    planes = {"r", "m", "y"} if layout == "planes" else ()
    weights = {
        "a": _sparse(random, 16, 3, 1, 1),
        "b": _sparse(random, middle, 3, 3, 3),
        "c": _sparse(random, 16, middle, *2 * [1 + 2 * window.pads[0]]),
        "d": _sparse(random, 5, 16, 3, 3),
    }
    x, r, m, y = (ir.Value(name=name) for name in "xrmy")
    beside = HALF if window.strides == (2, 2) else POINT
    return [
        sparse_node("a", x, "r", pack(weights["a"]), window=beside, planes=planes),
        sparse_node("b", x, "m", pack(weights["b"], block=block), window=AROUND, epilogue=RELU,
                    planes=planes),
        sparse_node("c", m, "y", pack(weights["c"], block=block), window=window, residual=r,
                    epilogue=RELU, planes=planes),
        sparse_node("d", y, "z", pack(weights["d"]), window=AROUND, planes=planes),
    ]  # fmt: skip


def _records(layout, batch, height, width):
    shape = (batch, 16, height, width)
    shape = planes_shape(*shape) if layout == "planes" else shape
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in SHARED]


@pytest.mark.parametrize("layout", ["planes", "nchw"])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("width", [7, 16, 23])
@pytest.mark.parametrize(
    ("middle", "window"),
    [(8, AROUND), (300, POINT), (8, HALF_AROUND)],
    ids=["few", "ranges", "strided"],
)
@pytest.mark.parametrize(("batch", "threads"), [(2, 1), (1, 3)])
def test_output_in_the_residuals_memory(
    sessions, layout, block, width, middle, window, batch, threads
):
    random = np.random.default_rng(width)
    nodes = _block(random, layout, block, middle, window)
    step = window.strides[0]
    x = random.standard_normal((batch, 3, 9 * step, width * step)).astype(np.float32)
    shared = sessions.open(nodes, ["z"], threads=threads, records=_records(layout, batch, 9, width))
    apart = sessions.open(nodes, ["z"])
    for bad in (None, np.nan, np.inf):
        if bad is not None:
            x[batch - 1, 1, 4, width // 2] = bad
        expected = apart.run(None, {"x": x})[0]
        found = shared.run(None, {"x": x})[0]
        assert np.isfinite(expected).all() == (bad is None)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
