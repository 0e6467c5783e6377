"""The sum of a quantised convolution's bytes and other bytes is one operator with the same results,
where the blocks and the scales allow it."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from mfac_compress.export import Workload, measure_speed
from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.find import fuse
from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.layout import Placement
from mfac_compress.export.sparse.operator import SparseOperator
from mfac_compress.export.sparse.read_back import packed_weights

SHAPE = (2, 8, 9, 7)
BYTES = ["QuantizeLinear", "DequantizeLinear"]


def _weight(axis="outputs", *, kept=0.3, outputs=8):
    """Pruned in blocks of four along an axis."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (outputs, 8, 3, 3))
    shape = (outputs // 4, 8, 3, 3) if axis == "outputs" else (outputs, 2, 3, 3)
    kept = np.repeat(rng.random(shape) < kept, 4, axis=0 if axis == "outputs" else 1)
    return (weight * kept).astype(np.int8)


@pytest.fixture
def block(make_model):
    """x + conv(x) between QuantizeLinear and DequantizeLinear; constants may be others."""

    def build(weight=None, *, swapped=False, behind=(), more=(), added="x'", outputs=(), **new):
        constants = {
            "xs": np.float32(0.05), "xz": np.uint8(100), "ws": np.float32(0.02), "wz": np.int8(0),
            "ts": np.float32(0.3), "tz": np.uint8(120), "ys": np.float32(0.31), "yz": np.uint8(110),
            "w": _weight() if weight is None else weight,
        } | new  # fmt: skip
        terms = ["t'", added]
        nodes = [
            ("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            ("DequantizeLinear", ["xq", "xs", "xz"], ["x'"]),
            ("DequantizeLinear", ["w", "ws", "wz"], ["w'"]),
            ("Conv", ["x'", "w'"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("QuantizeLinear", ["c", "ts", "tz"], ["tq"]),
            ("DequantizeLinear", ["tq", "ts", "tz"], ["t'"]),
            *more,
            ("Add", terms[::-1] if swapped else terms, ["s0"]),
            *((kind, [f"s{n}", *rest], [f"s{n + 1}"]) for n, (kind, *rest) in enumerate(behind)),
            ("QuantizeLinear", [f"s{len(behind)}", "ys", "yz"], ["yq"]),
            ("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
        ]
        return make_model(nodes, {"x": list(SHAPE)}, ["y", *outputs], **constants)

    return build


@pytest.fixture
def feed():
    return {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32) * 3}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("behind", "constants"),
    [
        ([], {}),
        ([("Relu",)], {}),
        ([("Clip", "low", "high")], {"low": np.float32(-2), "high": np.float32(6)}),
        ([], {"tz": np.uint8(0), "ts": np.float32(0.02)}),  # the bytes between saturate
        ([], {"ys": np.float32(9)}),
        ([], {"ts": np.float32(0.05), "ys": np.float32(0.05)}),
    ],
)
def test_the_sum_is_one_operator(replaced, block, feed, swapped, behind, constants):
    kinds, (operator,) = replaced(block(swapped=swapped, behind=behind, **constants), feed)
    assert kinds == ["QuantizeLinear", "SparseQConvAdd", "DequantizeLinear"]
    assert operator.residual.name == "xq"
    assert operator.blocks(10.0) == [Block(4, "outputs")]


def test_of_two_convolutions_that_are_added_one_takes_the_other_as_its_residual(
    replaced, block, feed
):
    more = [
        ("Conv", ["x'", "w'"], ["d"], {"pads": [1, 1, 1, 1]}),
        ("QuantizeLinear", ["d", "ts", "tz"], ["uq"]),
        ("DequantizeLinear", ["uq", "ts", "tz"], ["u'"]),
    ]
    kinds, _ = replaced(block(more=more, added="u'"), feed)
    assert sorted(kinds) == sorted([*BYTES, "SparseQConv", "SparseQConvAdd"])


@pytest.mark.parametrize(
    "case",
    [
        {"weight": _weight("inputs")},  # faster in quads
        {"outputs": ["t'"]},  # others read the bytes between
        {"added": "x"},  # floats
        {"added": "b'", "more": [("DequantizeLinear", ["b", "xs", "xz"], ["b'"])],
         "b": np.full((1, 8, 1, 1), 7, np.uint8)},
        {"added": "b'", "more": [("DequantizeLinear", ["b", "xs", "xz"], ["b'"])],
         "b": np.full(SHAPE, 7, np.uint8)},
        {"added": "b'",  # broadcast
         "more": [("ReduceMax", ["x'"], ["r"], {"keepdims": 1}),
                  ("QuantizeLinear", ["r", "xs", "xz"], ["rq"]),
                  ("DequantizeLinear", ["rq", "xs", "xz"], ["b'"])]},
        {"ys": np.float32(5e-6)},  # beyond the kernels' factors
        {"ys": np.float32(0.005)},  # too few bits in the factors
        {"xs": np.float32(1 / 16), "ts": np.float32(1 / 4), "ys": np.float32(1 / 2)},  # many ties
    ],
)  # fmt: skip
def test_a_sum_that_does_not_fit_stays(replaced, block, feed, case):
    kinds, _ = replaced(block(**case), feed, axis="inputs")
    assert "SparseQConv" in kinds
    assert "Add" in kinds


def test_a_convolution_that_is_broadcast_over_the_other_term_stays(replaced, make_model):
    """As in attention to channels: what is computed of the mean is added to each pixel."""
    constants = {
        "xs": np.float32(0.05), "xz": np.uint8(100), "ws": np.float32(0.02), "wz": np.int8(0),
        "ts": np.float32(0.3), "tz": np.uint8(120), "ys": np.float32(0.31), "yz": np.uint8(110),
        "w": _weight()[:, :, 1:2, 1:2],
    }  # fmt: skip
    nodes = [
        ("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        ("DequantizeLinear", ["xq", "xs", "xz"], ["x'"]),
        ("GlobalAveragePool", ["x'"], ["m"]),
        ("QuantizeLinear", ["m", "xs", "xz"], ["mq"]),
        ("DequantizeLinear", ["mq", "xs", "xz"], ["m'"]),
        ("DequantizeLinear", ["w", "ws", "wz"], ["w'"]),
        ("Conv", ["m'", "w'"], ["c"]),
        ("QuantizeLinear", ["c", "ts", "tz"], ["tq"]),
        ("DequantizeLinear", ["tq", "ts", "tz"], ["t'"]),
        ("Add", ["t'", "x'"], ["s"]),
        ("QuantizeLinear", ["s", "ys", "yz"], ["yq"]),
        ("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    model = make_model(nodes, {"x": list(SHAPE)}, ["y"], **constants)
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32) * 3
    kinds, _ = replaced(model, {"x": x})
    assert "Add" in kinds


def test_its_factors_have_fifteen_bits(block, find):
    graph, layers, shapes = find(block())
    (operator,) = fuse(graph, layers, shapes)
    addition = operator.epilogue.then
    scales = np.array([0.3, 0.05]) / 0.31
    factors = np.array([addition.factor, addition.residual_factor])
    assert 2**14 <= factors.max() < 2**15
    np.testing.assert_allclose(factors / 2**addition.shift, scales, atol=2**-15)


def test_a_file_that_cannot_run_with_sparse_operators_has_a_reason(
    block, feed, tmp_path, monkeypatch, kernels
):
    """An error of ours in one layer, here its bias, does not end the run."""
    del kernels
    build = SparseOperator.build

    def wrong(self, *args):
        return build(replace(self, bias=np.full(8, 2**31 - 1, np.int32)), *args)

    monkeypatch.setattr(SparseOperator, "build", wrong)
    onnx.save(block(), tmp_path / "model.onnx")
    found = measure_speed(tmp_path / "model.onnx", lambda _: feed, [Workload(2, 1)])
    assert found.model is None
    assert "could not run it with sparse operators" in found.reason
    assert "must fit into 32 bits" in found.reason


def test_its_weight_is_read_back(block, find):
    graph, layers, shapes = find(block())
    (operator,) = fuse(graph, layers, shapes)
    model = rewrite(graph, {operator: Placement(Block(4))})
    ((_, weight),) = packed_weights(model, graph.model)
    np.testing.assert_array_equal(weight, _weight())


def test_an_operator_with_another_sum_computes_something_else(replaced, block, feed, monkeypatch):
    """The comparison above detects a wrong factor."""
    build = SparseOperator.build

    def wrong(self, *args):
        addition = self.epilogue.then
        addition = replace(addition, residual_factor=int(addition.residual_factor * 1.05))
        return build(replace(self, epilogue=replace(self.epilogue, then=addition)), *args)

    monkeypatch.setattr(SparseOperator, "build", wrong)
    with pytest.raises(AssertionError):
        replaced(block(), feed)
