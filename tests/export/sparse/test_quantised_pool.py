"""The MaxPool after a quantised convolution is part of its operator if the bytes are the same."""

import numpy as np
import pytest

from mfac_compress.export.sparse.nodes import MaxPool

SHAPE = (2, 8, 9, 7)
WEIGHT = np.repeat(np.arange(-96, 97).reshape(-1)[: 2 * 8 * 9].reshape(2, 8, 3, 3), 4, 0)


@pytest.fixture
def pooled(make_model):
    """MaxPool(Relu(conv(x))) between QuantizeLinear and DequantizeLinear."""

    def build(attributes, *, weight=WEIGHT, read=("ts", "tz"), more=(), outputs=()):
        constants = {
            "xs": np.float32(0.05), "xz": np.uint8(100), "ws": np.float32(0.002), "wz": np.int8(0),
            "ts": np.float32(0.03), "tz": np.uint8(9), "us": np.float32(0.04), "uz": np.uint8(10),
            "w": weight.astype(np.int8),
        }  # fmt: skip
        nodes = [
            ("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            ("DequantizeLinear", ["xq", "xs", "xz"], ["x'"]),
            ("DequantizeLinear", ["w", "ws", "wz"], ["w'"]),
            ("Conv", ["x'", "w'"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("QuantizeLinear", ["c", "ts", "tz"], ["tq"]),
            ("DequantizeLinear", ["tq", "ts", "tz"], ["t'"]),
            ("MaxPool", ["t'"], ["p", *more], attributes),
            ("QuantizeLinear", ["p", *read], ["yq"]),
            ("DequantizeLinear", ["yq", *read], ["y"]),
        ]
        return make_model(nodes, {"x": list(SHAPE)}, ["y", *outputs], **constants)

    return build


@pytest.fixture
def feed():
    return {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32) * 3}


@pytest.mark.parametrize(
    ("attributes", "pool"),
    [
        ({"kernel_shape": [2, 2], "strides": [2, 2]}, MaxPool((2, 2), (2, 2), (0, 0, 0, 0))),
        (
            {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 2, 1]},
            MaxPool((3, 2), (2, 1), (1, 0, 2, 1)),
        ),
        ({"kernel_shape": [3, 3]}, MaxPool((3, 3), (1, 1), (0, 0, 0, 0))),
    ],
)
def test_it_is_one_operator(replaced, pooled, feed, attributes, pool):
    kinds, (operator,) = replaced(pooled(attributes), feed)
    assert kinds == ["QuantizeLinear", "SparseQConvMaxPool", "DequantizeLinear"]
    assert operator.epilogue.then == pool


@pytest.mark.parametrize(
    "case",
    [
        {"attributes": {"ceil_mode": 1}},
        {"attributes": {"auto_pad": "SAME_UPPER"}},
        {"attributes": {"dilations": [2, 1]}},
        {"attributes": {"kernel_shape": [10, 2]}},  # larger than the image
        {"read": ("us", "tz")},
        {"read": ("ts", "uz")},
        {"outputs": ["t'"]},
        {"weight": np.moveaxis(np.repeat(WEIGHT[::4, :2], 4, 1), 0, 0).repeat(4, 0)[:, :8]
         * (np.arange(8) % 3 == 0)[:, None, None, None]},  # smaller in quads
    ],
)  # fmt: skip
def test_what_does_not_fit_stays(replaced, pooled, feed, case):
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2]} | case.pop("attributes", {})
    kinds, _ = replaced(pooled(attributes, **case), feed, axis="inputs")
    assert "SparseQConv" in kinds
    assert "MaxPool" in kinds


def test_places_of_the_largest_are_not_left_out(replaced, pooled, feed):
    model = pooled({"kernel_shape": [2, 2]}, more=["places"])
    assert "MaxPool" in replaced(model, feed)[0]
