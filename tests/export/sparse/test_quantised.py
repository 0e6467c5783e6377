"""Layers of QDQ files become sparse operators with the same results, or have a reason."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from mfac_compress.export import Workload, measure_speed
from mfac_compress.export.sparse import choose, whole
from mfac_compress.export.sparse.find import find_layers
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported

X_SCALE, W_SCALE, Y_SCALE = np.float32(0.05), np.float32(0.02), np.float32(0.11)


def _feeds_of(features):
    return lambda workload: _feed(workload.batch_size, features)


def _qdq(
    make_model,
    weight,
    *,
    layer="Gemm",
    attributes=None,
    bias=True,
    behind=(),
    shape=("n", 12),
    **new,
):
    """A layer between DequantizeLinear and QuantizeLinear; constants may be others."""
    transposed = layer == "Gemm" and (attributes or {}).get("transB")
    outputs = weight.shape[0] if layer == "Conv" or transposed else weight.shape[1]
    constants = {
        "xs": X_SCALE, "xz": np.uint8(100), "w": weight, "ws": W_SCALE, "wz": np.int8(0),
        "b": np.arange(outputs, dtype=np.int32) * 40, "bs": X_SCALE * W_SCALE,
        "ys": Y_SCALE, "yz": np.uint8(90),
    } | new  # fmt: skip
    axis = {} if np.ndim(constants["ws"]) == 0 else {"axis": new.pop("axis", 0)}
    constants.pop("axis", None)
    read = ["x'", "w'", "b'"] if bias and layer != "MatMul" else ["x'", "w'"]
    nodes = [
        ("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        ("DequantizeLinear", ["xq", "xs", "xz"], ["x'"]),
        ("DequantizeLinear", ["w", "ws", "wz"], ["w'"], axis),
        ("DequantizeLinear", ["b", "bs"], ["b'"], {"axis": 0} if np.ndim(constants["bs"]) else {}),
        (layer, read, ["m0"], attributes or {}),
        *((kind, [f"m{n}", *rest], [f"m{n + 1}"]) for n, (kind, *rest) in enumerate(behind)),
        ("QuantizeLinear", [f"m{len(behind)}", "ys", "yz"], ["yq"]),
        ("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    return make_model(nodes, {"x": list(shape)}, ["y"], **constants)


def _weight(*shape, kept=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(-127, 128, shape) * (rng.random(shape) < kept)).astype(np.int8)


def _feed(*shape):
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 3}


FROM_X = ["QuantizeLinear"]
TO_Y = ["DequantizeLinear"]


AXES = pytest.mark.parametrize("axis", ["outputs", "inputs"])
"""Of the blocks in which the weight is stored."""


@AXES
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm(replaced, make_model, transposed, channels, bias, axis):
    weight = _weight(6, 12) if transposed else _weight(12, 6)
    new = {}
    if channels:
        scales = np.linspace(0.01, 0.04, 6, dtype=np.float32)
        new = {"ws": scales, "wz": np.zeros(6, np.int8), "bs": X_SCALE * scales}
        new |= {"axis": 0 if transposed else 1}
    model = _qdq(make_model, weight, attributes={"transB": transposed}, bias=bias, **new)
    kinds, operators = replaced(model, _feed(5, 12), axis=axis)
    assert kinds == [*FROM_X, "SparseQLinear", *TO_Y]
    assert operators[0].sparsity == 1 - np.count_nonzero(weight) / weight.size
    assert operators[0].weight_name == "w"


@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 1, 3)])
def test_matmul(replaced, make_model, leading):
    model = _qdq(make_model, _weight(12, 6), layer="MatMul", shape=(*leading, 12))
    assert replaced(model, _feed(*leading, 12))[0] == [*FROM_X, "SparseQLinear", *TO_Y]


@AXES
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [0, 1, 2, 0]},
        {"dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER"},
        {"group": 2},
    ],
)
def test_conv(replaced, make_model, attributes, axis):
    weight = _weight(6, 8 // attributes.get("group", 1), 3, 3)
    model = _qdq(make_model, weight, layer="Conv", attributes=attributes, shape=(2, 8, 9, 7))
    found = replaced(model, _feed(2, 8, 9, 7), axis=axis)[0]
    assert found == [*FROM_X, "SparseQConv", *TO_Y]


@pytest.mark.parametrize(
    ("behind", "constants"),
    [
        ([("Relu",)], {}),
        ([("Clip", "low", "high")], {"low": np.float32(-2), "high": np.float32(6)}),
        ([("Clip", "", "high")], {"high": np.float32(6)}),
    ],
)
def test_activations_are_bounds_of_the_bytes(replaced, make_model, behind, constants):
    model = _qdq(make_model, _weight(12, 6), behind=behind, **constants)
    kinds, operators = replaced(model, _feed(40, 12))
    assert kinds == [*FROM_X, "SparseQLinear", *TO_Y]
    rounding = operators[0].epilogue
    assert (rounding.low, rounding.high) != (0, 255)


def _pruned(kind):
    random = np.random.default_rng(0)
    shape = {"outputs": (32, 1, 64), "inputs": (32, 4, 16, 1), "unstructured": (32, 4, 64)}[kind]
    weight = np.ones((32, 4, 64), np.int8).reshape(32, 4, *((16, 4) if kind == "inputs" else (64,)))
    return (weight * (random.random(shape) < 0.1)).reshape(128, 64)


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("outputs", ["outputs"]),
        ("inputs", ["inputs"]),
        ("unstructured", ["outputs", "inputs"]),
    ],
)
def test_a_weight_is_timed_in_the_blocks_that_need_little_padding(make_model, kind, axes):
    weight = _pruned(kind)
    model = _qdq(make_model, weight.astype(np.int8), attributes={"transB": 1}, shape=("n", 64))
    operator = find_layers(_graph(model))[0].found
    assert [(block.size, block.axis) for block in operator.blocks(2.0)] == [(4, a) for a in axes]


def _graph(model):
    return Graph(to_ir(model))


def _reason(model, place=0):
    found = find_layers(_graph(model))[place].found
    assert isinstance(found, Unsupported)
    return found.reason


REFUSALS = {
    "int8, and the kernels take uint8": {"xz": np.int8(3)},
    "zero point that is not 0": {"wz": np.int8(3)},
    "its weight is uint8": {"w": np.ones((12, 6), np.uint8), "wz": np.uint8(0)},
    "its output is int8": {"yz": np.int8(0)},
    "its output is uint16": {"yz": np.uint16(90)},
    "its weight has float16 scales": {"ws": np.float16(0.02)},
    "its weight has scales that are not finite and positive": {"ws": np.float32(0)},
    "the scale of its bias": {"bs": np.float32(1)},
    "one scale for each input": {"ws": np.full(12, W_SCALE), "wz": np.zeros(12, np.int8)},
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_does_not_fit_has_a_reason(make_model, reason):
    assert reason in _reason(_qdq(make_model, _weight(12, 6), **REFUSALS[reason]))


@pytest.mark.parametrize("dequantised", [False, True])
def test_wrong_bytes_are_not_written(make_model, tmp_path, monkeypatch, kernels, dequantised):
    """Whether the file returns the dequantised floats, or the bytes themselves."""
    del kernels
    build = SparseOperator.build

    def wrong(self, *args):
        rounding = replace(self.epilogue, scales=self.epilogue.scales * np.float32(3))
        return build(replace(self, epilogue=rounding), *args)

    monkeypatch.setattr(SparseOperator, "build", wrong)
    for module in (choose, whole):
        monkeypatch.setattr(module, "time_models", _sparse_is_faster)
    model = _qdq(make_model, _weight(12, 6))
    if not dequantised:
        model.graph.node.pop()
        model.graph.output[0].name = "yq"
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, tmp_path / "model.onnx")
    found = measure_speed(tmp_path / "model.onnx", _feeds_of(12), [Workload(50, 1)])
    assert found.difference > 0.05
    assert found.model is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "scales",
    [
        {"ys": np.float32(1e-44), "xs": np.float32(5), "ws": np.float32(5), "bs": np.float32(25)},
        {"xs": np.float32(1e30), "ws": np.float32(1e30), "bs": np.float32(1e38)},
    ],
)
def test_scales_beyond_float32_have_a_reason(make_model, scales):
    assert "too large" in _reason(_qdq(make_model, _weight(12, 6), **scales))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("low", "high"), [(6, 0), (np.nan, 3), (0, np.nan)])
def test_a_clip_without_a_range_has_a_reason(make_model, low, high):
    constants = {"low": np.float32(low), "high": np.float32(high)}
    model = _qdq(make_model, _weight(12, 6), behind=[("Clip", "low", "high")], **constants)
    assert "Clip" in _reason(model)


@pytest.mark.filterwarnings("error")
def test_a_clip_beyond_the_range_of_floats_does_nothing(replaced, make_model):
    constants = {"low": np.float32(-np.inf), "high": np.float32(3e38)}
    model = _qdq(make_model, _weight(12, 6), behind=[("Clip", "low", "high")], **constants)
    rounding = replaced(model, _feed(40, 12))[1][0].epilogue
    assert (rounding.low, rounding.high) == (0, 255)


MOST = 2**31 - 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("over", [0, 1])
def test_sums_that_may_overflow_32_bits_are_left_to_onnx_runtime(make_model, sign, over):
    """The kernels refuse to load them, with the other layers of the file."""
    weight = sign * np.array([[3, 1], [-2, 0], [0, 4]], np.int8)
    # Of the first output: begin = bias − 100 (3 − 2), and bytes add 255 · 3 to it at most.
    bias = sign * np.array([MOST - 255 * 3 + 100 + over, 0], np.int64)
    model = _qdq(make_model, weight, shape=("n", 3), b=bias.astype(np.int32))
    if over:
        assert "32 bits" in _reason(model)
    else:
        assert find_layers(_graph(model))[0].found.is_quantised


def test_a_file_with_sums_that_may_overflow_32_bits_has_its_other_layers_replaced(
    make_model, tmp_path, monkeypatch, kernels
):
    del kernels
    for module in (choose, whole):
        monkeypatch.setattr(module, "time_models", _sparse_is_faster)
    bias = np.array([MOST, 0, 0, 0, 0, 0], np.int32)
    model = _qdq(make_model, _weight(12, 6), b=bias)
    for name, array in (("v", _weight(6, 4)), ("vs", W_SCALE)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model.graph.node.extend(
        [
            onnx.helper.make_node("DequantizeLinear", ["v", "vs"], ["v'"], "vd"),
            onnx.helper.make_node("MatMul", ["y", "v'"], ["m"], "second"),
            onnx.helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["zq"], "zq"),
            onnx.helper.make_node("DequantizeLinear", ["zq", "ys", "yz"], ["z"], "zd"),
        ]
    )
    model.graph.output[0].name = "z"
    onnx.save(model, tmp_path / "model.onnx")
    found = measure_speed(tmp_path / "model.onnx", _feeds_of(12), [Workload(5, 1)])
    assert [layer.block for layer in found.layers] == [None, 4]
    assert "32 bits" in found.layers[0].reason
    assert found.model is not None


def _sparse_is_faster(models, feeds, *, threads, rounds):
    sparse = [any(node.domain == DOMAIN for node in model.graph) for model in models]
    return [[1.0 if each else 2.0] * 3 for each in sparse]


def _node(model, makes):
    return next(node for node in model.graph.node if node.output[0] == makes)


def _set(node, **attributes):
    node.attribute.extend(onnx.helper.make_attribute(*each) for each in attributes.items())


def test_an_output_without_a_zero_point_has_a_reason(make_model):
    model = _qdq(make_model, _weight(12, 6))
    node = _node(model, "yq")
    del node.input[2:]
    assert "its output has no zero point" in _reason(model)
    _set(node, output_dtype=onnx.TensorProto.INT8)
    assert "its output has no zero point" in _reason(model)


def test_a_weight_in_blocks_has_a_reason(make_model):
    scales = np.full((3, 6), W_SCALE)
    model = _qdq(make_model, _weight(12, 6), layer="MatMul", ws=scales, axis=0,
                 wz=np.zeros((3, 6), np.int8))  # fmt: skip
    _set(_node(model, "w'"), block_size=4)
    assert "its weight is quantised in blocks" in _reason(model)


def test_scales_that_are_computed_have_a_reason(make_model):
    model = _qdq(make_model, _weight(12, 6))
    model.graph.node.insert(0, onnx.helper.make_node("Sin", ["ws"], ["computed"], "neg"))
    _node(model, "w'").input[1] = "computed"
    assert "its weight has a scale or zero point that is not constant" in _reason(model, 0)


@pytest.mark.parametrize(
    ("layer", "shape"), [("Conv", (6, 8, 3, 3)), ("Gemm", (12, 6)), ("MatMul", (12, 6))]
)
def test_a_weight_that_is_computed_has_a_reason(make_model, layer, shape):
    images = {"shape": (2, 8, 9, 7)} if layer == "Conv" else {}
    model = _qdq(make_model, _weight(*shape), layer=layer, **images)
    _node(model, "w'").input[0] = "computed"
    model.graph.node.insert(0, onnx.helper.make_node("BitwiseNot", ["w"], ["computed"], "not"))
    assert "its weight is not constant" in _reason(model, 0)


@pytest.mark.parametrize("makes", ["x'", "w'", "b'", "yq"])
def test_nodes_of_another_domain_have_a_reason(make_model, makes):
    model = _qdq(make_model, _weight(12, 6))
    _node(model, makes).domain = "com.microsoft"
    assert "Linear of com.microsoft" in _reason(model)


@pytest.mark.parametrize(
    ("attributes", "reason"), [({"alpha": 0.5}, "alpha"), ({"transA": 1}, "transA")]
)
def test_a_gemm_with_other_factors_has_a_reason(make_model, attributes, reason):
    assert reason in _reason(_qdq(make_model, _weight(12, 6), attributes=attributes))


def test_a_convolution_whose_padding_depends_on_the_size_has_a_reason(make_model):
    attributes = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    model = _qdq(make_model, _weight(6, 8, 3, 3), layer="Conv", attributes=attributes,
                 shape=(2, 8, 9, 7))  # fmt: skip
    assert "SAME_UPPER" in _reason(model)


def test_a_convolution_whose_output_is_not_quantised_has_a_reason(make_model):
    model = _qdq(make_model, _weight(6, 8, 3, 3), layer="Conv", behind=[("Sigmoid",)],
                 shape=(2, 8, 9, 7))  # fmt: skip
    assert "not quantised" in _reason(model)


def test_a_convolution_whose_output_others_read_as_floats_has_a_reason(make_model):
    model = _qdq(make_model, _weight(6, 8, 3, 3), layer="Conv", shape=(2, 8, 9, 7))
    model.graph.output.append(onnx.helper.make_tensor_value_info("m0", 1, None))
    assert "not quantised" in _reason(model)


def test_a_layer_with_only_its_weight_quantised_is_a_float_layer(make_model):
    model = _qdq(make_model, _weight(12, 6))
    next(node for node in model.graph.node if node.op_type == "Gemm").input[0] = "x"
    (operator,) = [layer.found for layer in find_layers(_graph(model))]
    assert not operator.is_quantised
    assert operator.sparsity == 1 - np.count_nonzero(_weight(12, 6)) / 72


def test_a_dequantised_value_that_others_read_stays(replaced, make_model):
    model = _qdq(make_model, _weight(12, 6))
    model.graph.node.append(onnx.helper.make_node("Relu", ["x'"], ["z"], "relu"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["n", 12]))
    assert "DequantizeLinear" in replaced(model, _feed(5, 12))[0][:-1]


def _append(model, *nodes):
    """Nodes given as (kind, inputs, output) at the end, the model returning the last one's."""
    for kind, reads, makes in nodes:
        model.graph.node.append(onnx.helper.make_node(kind, reads, [makes], f"for {makes}"))
    value = onnx.helper.make_tensor_value_info(nodes[-1][2], 1, ["n", 6])
    model.graph.output.append(value)


def test_several_nodes_may_read_the_bytes(replaced, make_model):
    model = _qdq(make_model, _weight(12, 6))
    _append(model, ("DequantizeLinear", ["yq", "ys", "yz"], "other"))
    kinds, operators = replaced(model, _feed(5, 12))
    assert kinds == [*FROM_X, "SparseQLinear", *TO_Y, *TO_Y]
    assert len(operators) == 1


def test_a_sum_that_is_quantised_twice_is_made_as_floats(replaced, make_model):
    model = _qdq(make_model, _weight(12, 6))
    _append(model, ("QuantizeLinear", ["m0", "xs", "xz"], "q"),
            ("DequantizeLinear", ["q", "xs", "xz"], "other"))  # fmt: skip
    kinds = replaced(model, _feed(5, 12))[0]
    assert kinds[:2] == [*FROM_X, "SparseQLinearToFloat"]
    assert kinds.count("QuantizeLinear") == 3


@pytest.mark.parametrize("shared", ["w'", "w"])
def test_layers_may_share_a_weight_and_what_dequantises_it(replaced, make_model, shared):
    model = _qdq(make_model, _weight(12, 6))
    _append(
        model,
        *([] if shared == "w'" else [("DequantizeLinear", ["w", "ws", "wz"], "w again")]),
        ("MatMul", ["x'", "w'" if shared == "w'" else "w again"], "m again"),
        ("QuantizeLinear", ["m again", "ys", "yz"], "q again"),
        ("DequantizeLinear", ["q again", "ys", "yz"], "y again"),
    )
    kinds, operators = replaced(model, _feed(5, 12))
    assert kinds == [*FROM_X, "SparseQLinear", *TO_Y, "SparseQLinear", *TO_Y]
    assert [operator.weight_name for operator in operators] == ["w", "w"]


def test_one_of_two_layers_with_one_weight_may_stay(replaced, make_model):
    """It reads floats, so the DequantizeLinear of its weight stays, too."""
    model = _qdq(make_model, _weight(12, 6))
    model.graph.input.append(onnx.helper.make_tensor_value_info("f", 1, ["n", 12]))
    _append(
        model,
        ("MatMul", ["f", "w'"], "m again"),
        ("QuantizeLinear", ["m again", "ys", "yz"], "q again"),
        ("DequantizeLinear", ["q again", "ys", "yz"], "y again"),
    )
    kinds, operators = replaced(model, _feed(5, 12) | {"f": _feed(5, 12)["x"]})
    assert "SparseQLinear" in kinds
    assert "MatMul" in kinds
    assert len(operators) == 1


def test_an_operator_with_other_scales_computes_something_else(replaced, make_model, monkeypatch):
    """The comparison above detects a wrong scale."""
    build = SparseOperator.build

    def wrong(self, *args):
        rounding = replace(self.epilogue, scales=self.epilogue.scales * np.float32(1.05))
        return build(replace(self, epilogue=rounding), *args)

    monkeypatch.setattr(SparseOperator, "build", wrong)
    with pytest.raises(AssertionError):
        replaced(_qdq(make_model, _weight(12, 6)), _feed(50, 12))
