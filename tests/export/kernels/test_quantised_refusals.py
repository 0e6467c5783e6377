"""Quantised nodes that do not fit are an error of ONNX Runtime when the session is created."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from mfac_compress.export.sparse import (
    Addition,
    MaxPool,
    Rounding,
    Window,
    pack,
    pack_1x4,
    sparse_node,
)

PACKED = pack_1x4(np.tile(np.array([1, 0, 0, 0], np.int8), (8, 2)))
BLOCKS = pack(np.ones((7, 3), np.int8), block=4)
KERNEL = pack_1x4(np.ones((4, 3, 3, 3), np.int8), group=2)
ROUNDING = Rounding(np.ones(8, np.float32), 3, 5)
LINEAR = {"out_features", "in_features", "x_zero_point", "y_zero_point", "min", "max"}
CONV = (LINEAR - {"out_features", "in_features"}) | {
    "out_channels", "in_channels", "group", "kernel_shape", "strides", "pads", "dilations"
}  # fmt: skip


def _ints(*values):
    return np.array(values, dtype=np.int32)


def _linear(packed=PACKED, bias=None):
    return sparse_node("l", ir.Value(name="x"), "y", packed, epilogue=ROUNDING, bias=bias)


def _conv():
    rounding = Rounding(np.ones(4, np.float32), 3, 5)
    return sparse_node("c", ir.Value(name="x"), "y", KERNEL, window=Window(), epilogue=rounding)


def _with(node, tensors=(), **attributes):
    """Return the node with some of its attributes (None: without) and tensors replaced."""
    given = {name: attribute.value for name, attribute in node.attributes.items()} | attributes
    given = {name: value for name, value in given.items() if value is not None}
    new = {name: ir.Value(name=name, const_value=ir.tensor(a, name=name)) for name, a in tensors}
    inputs = [value and new.get(value.name, value) for value in node.inputs]
    return ir.node(node.op_type, inputs, given, domain=node.domain, outputs=[ir.Value(name="y")])


@pytest.fixture
def refused(any_sessions):
    def check(node, message):
        with pytest.raises(Exception, match=message):
            any_sessions.open([node], kind=TensorProto.UINT8)

    return check


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (replace(PACKED, indices=_ints(*[0, 2] * 8)), r"lie in \[0, 2\)"),
        (replace(PACKED, indices=_ints(*[-1, 1] * 8)), r"lie in \[0, 2\)"),
        (replace(PACKED, indices=_ints(*[1, 0] * 8)), "rise"),
        (replace(PACKED, starts=_ints(0, 2, 4, 3, 8, 10, 12, 14, 16)), "must not fall"),
        (replace(PACKED, starts=_ints(0, 2, 4, 6, 8, 10, 12, 14, 17)), "end with"),
        (replace(PACKED, starts=_ints(0, 2, 4, 6, 8, 10, 12, 16)), "one entry a group"),
        (replace(PACKED, values=np.ones((16, 1), np.int8)), "values must be"),
        (replace(PACKED, values=np.ones((15, 4), np.int8)), "values must be"),
        (replace(PACKED, values=np.ones(64, np.int8)), "values must be"),
        (replace(PACKED, shape=(8, 7), values=np.ones((16, 4), np.int8)), "beyond the last input"),
        (replace(PACKED, shape=(8, 2**62)), "lie in|large"),
        (replace(PACKED, shape=(8, 0)), "lie in"),
    ],
)
def test_broken_weights_are_refused(refused, packed, message):
    refused(_linear(packed), message)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (replace(BLOCKS, indices=_ints(0, 1, 3, 0, 1, 2)), r"lie in \[0, 3\)"),
        (replace(BLOCKS, indices=_ints(0, 1, 2, -1, 1, 2)), r"lie in \[0, 3\)"),
        (replace(BLOCKS, indices=_ints(0, 1, 2, 0, 2, 1)), "rise"),
        (replace(BLOCKS, starts=_ints(0, 7, 6)), "must not fall"),
        (replace(BLOCKS, starts=_ints(0, 3, 7)), "end with"),
        (replace(BLOCKS, starts=_ints(0, 1, 2, 3, 4, 5, 6, 6)), "one entry a group"),
        (replace(BLOCKS, values=np.ones((6, 1), np.int8)), "values must be"),
        (replace(BLOCKS, values=np.ones((5, 4), np.int8)), "values must be"),
        (replace(BLOCKS, values=np.ones((6, 4), np.int8)), "beyond the last output"),
        (replace(BLOCKS, shape=(7, 2**40)), "lie in"),
        (replace(BLOCKS, shape=(7, 2**31 - 1)), "must be at most"),
        (replace(BLOCKS, shape=(7, 0)), "lie in"),
    ],
)
def test_broken_blocks_of_outputs_are_refused(refused, packed, message):
    rounding = replace(ROUNDING, scales=np.ones(7, np.float32))
    refused(sparse_node("l", ir.Value(name="x"), "y", packed, epilogue=rounding), message)


@pytest.mark.parametrize("block", [0, 1, 8, -4, 2**40, 4.0, "4", [4]])
def test_a_block_that_is_not_four_is_refused(refused, block):
    """Also one of another type, which must not be taken for the quads of a node without it."""
    rounding = replace(ROUNDING, scales=np.ones(1, np.float32))
    quads = pack_1x4(np.ones((1, 4), np.int8))  # as many starts as blocks of outputs
    node = sparse_node("l", ir.Value(name="x"), "y", quads, epilogue=rounding)
    refused(_with(node, block=block), "block must be")


def test_weights_beyond_the_last_channel_are_refused(refused):
    node = _conv()
    values = node.inputs[1].const_value.numpy().copy()
    values[-1] = 1  # three channels a group
    refused(_with(node, [("c.values", values)]), "beyond the last input")


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (np.ones(7, np.float32), "one number an output"),
        (np.full(8, np.nan, np.float32), "finite"),
        (np.full(8, np.inf, np.float32), "finite"),
        (np.full(8, -1, np.float32), "not negative"),
    ],
)
def test_scales_that_do_not_fit_are_refused(refused, scales, message):
    refused(_with(_linear(), [("l.scales", scales)]), message)


@pytest.mark.parametrize("extreme", [2**31 - 1, -(2**31) + 1])
@pytest.mark.parametrize("form", [pack_1x4, lambda weight: pack(weight, block=4)])
def test_sums_that_could_overflow_32_bits_are_refused(refused, any_sessions, extreme, form):
    packed = form(np.tile(np.array([1, 0, 0, 0], np.int8), (8, 2)))
    refused(_linear(packed, bias=np.full(8, extreme, np.int32)), "fit into 32 bits")
    # A bias as near to the end as ONNX Runtime's quantiser makes it, with the weights of one sign.
    one_sided = form(np.where(np.eye(8, 12) > 0, -np.sign(extreme), 0).astype(np.int8))
    any_sessions.open(
        [_linear(one_sided, bias=np.full(8, extreme - np.sign(extreme) * 256, np.int32))],
        kind=TensorProto.UINT8,
    )
    within = extreme // 2
    any_sessions.open([_linear(packed, bias=np.full(8, within, np.int32))], kind=TensorProto.UINT8)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"x_zero_point": 256}, "x_zero_point must lie in"),
        ({"y_zero_point": -1}, "y_zero_point must lie in"),
        ({"max": 2**40}, "max must lie in"),
        ({"min": 9, "max": 8}, "min must not"),
    ],
)
def test_zero_points_and_bounds_are_bytes(refused, attributes, message):
    refused(_with(_linear(), **attributes), message)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group": 0}, "multiple of group"),
        ({"in_channels": 7}, "multiple of group"),
        ({"in_channels": 2**62}, "too large|must lie in"),
        ({"in_channels": 2**63 - 1, "group": 1}, "too large|must lie in"),
        ({"kernel_shape": [2**40, 3]}, "must lie in"),
        ({"strides": [0, 1]}, "must lie in"),
        ({"pads": [1, 1]}, "4 numbers"),
    ],
)
def test_attributes_of_conv_are_refused(refused, attributes, message):
    refused(_with(_conv(), **attributes), message)


@pytest.mark.parametrize(("make", "names"), [(_linear, LINEAR), (_conv, CONV)])
def test_every_attribute_is_written_and_must_be_given_with_its_type(refused, make, names):
    assert set(make().attributes) == names
    for name in names:
        refused(_with(make(), **{name: None}), f"{name} must be given")
        refused(_with(make(), **{name: "a word"}), f"{name} must (be given|have)")


def test_the_types_of_tensors_are_checked(refused):
    refused(_with(_linear(), [("l.values", np.ones((16, 4), np.uint8))]), "int8")
    refused(_with(_linear(), [("l.scales", np.ones(8))]), "double")


@pytest.mark.parametrize("shape", [(), (7,), (8, 7), (2, 3, 9), (3, 0)])
def test_inputs_of_another_shape_are_refused(any_sessions, shape):
    session = any_sessions.open([_linear()], kind=TensorProto.UINT8)
    with pytest.raises(Exception, match=r"X must be \[\.\.\., 8\]"):
        session.run(None, {"x": np.ones(shape, np.uint8)})


@pytest.mark.parametrize("shape", [(1, 6, 5), (1, 5, 5, 5), (1, 6, 0, 5), (1, 6, 2, 5)])
def test_images_of_another_shape_are_refused(any_sessions, shape):
    session = any_sessions.open([_conv()], kind=TensorProto.UINT8)
    with pytest.raises(Exception, match=r"must be|must have"):
        session.run(None, {"x": np.ones(shape, np.uint8)})


def test_an_empty_batch_gives_an_empty_batch(sessions):
    session = sessions.open([_linear()], kind=TensorProto.UINT8)
    assert session.run(None, {"x": np.ones((0, 8), np.uint8)})[0].shape == (0, 8)
    session = sessions.open([_conv()], kind=TensorProto.UINT8)
    assert session.run(None, {"x": np.ones((0, 6, 5, 5), np.uint8)})[0].shape == (0, 4, 3, 3)


def _conv_add(**changed):
    addition = Addition(1, 1, 0, 0)
    rounding = Rounding(np.ones(4, np.float32), 3, 5, then=addition)
    node = sparse_node(
        "c",
        ir.Value(name="x"),
        "y",
        pack(np.ones((4, 3, 3, 3), np.int8), block=4),
        window=Window(),
        epilogue=rounding,
        residual=ir.Value(name="r"),
    )
    return _with(node, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"add_factor": -1}, r"add_factor must lie in \[0, 32767\]. Got -1"),
        ({"add_residual_factor": 2**15}, "add_residual_factor must lie in"),
        ({"add_offset": 2**31 - 1}, "add_offset must lie in"),
        ({"add_shift": 32}, "add_shift must lie in"),
        ({"add_min": 9, "add_max": 8}, "add_min must not be above add_max"),
        ({"add_max": 256}, "add_max must lie in"),
        ({"add_max": None}, "add_max"),
        ({"block": None}, "block must be 4"),
    ],
)
def test_a_sum_that_does_not_fit_is_refused(refused, changed, message):
    refused(_conv_add(**changed), message)


@pytest.mark.parametrize("shape", [(1, 4, 6, 5), (1, 4, 6, 7), (2, 4, 6, 6), (4, 6, 6), None])
def test_a_residual_of_another_size_is_refused(any_sessions, shape):
    node = _conv_add()
    if shape is None:
        node = ir.node(node.op_type, node.inputs[:6], node.attributes, domain=node.domain,
                       outputs=[ir.Value(name="y")])  # fmt: skip
    session = any_sessions.open([node], ["y"], kind=TensorProto.UINT8)
    feeds = {"x": np.zeros((1, 3, 8, 8), np.uint8)}
    if shape is not None:
        feeds["r"] = np.zeros(shape, np.uint8)
    with pytest.raises(Exception, match=r"residual must be \[1, 4, 6, 6\]"):
        session.run(None, feeds)


def _conv_pool(**changed):
    pool = MaxPool((2, 2), (2, 2), (0, 0, 0, 0))
    rounding = Rounding(np.ones(4, np.float32), 3, 5, then=pool)
    weights = pack(np.ones((4, 3, 3, 3), np.int8), block=4)
    node = sparse_node("c", ir.Value(name="x"), "y", weights, window=Window(), epilogue=rounding)
    return _with(node, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pool_kernel_shape": [0, 2]}, "pool_kernel_shape must lie in"),
        ({"pool_kernel_shape": [2]}, "pool_kernel_shape must have 2 numbers"),
        ({"pool_strides": [2, 0]}, "pool_strides must lie in"),
        ({"pool_pads": [0, 2, 0, 0]}, "pool_pads must be smaller"),
        ({"pool_pads": [0, -1, 0, 0]}, "pool_pads must lie in"),
        ({"pool_pads": None}, "pool_pads"),
        ({"block": None}, "block must be 4"),
    ],
)
def test_pooling_that_does_not_fit_is_refused(refused, changed, message):
    refused(_conv_pool(**changed), message)


def test_an_image_smaller_than_the_window_of_the_pooling_is_refused(any_sessions):
    session = any_sessions.open(
        [_conv_pool(pool_kernel_shape=[7, 7])], ["y"], kind=TensorProto.UINT8
    )
    with pytest.raises(Exception, match="must be at least as large as the dilated kernel"):
        session.run(None, {"x": np.zeros((1, 3, 8, 8), np.uint8)})


@pytest.mark.parametrize("node", [_conv_add, _conv_pool])
def test_a_batch_without_images_has_no_results(any_sessions, node):
    session = any_sessions.open([node()], ["y"], kind=TensorProto.UINT8)
    feeds = {"x": np.zeros((0, 3, 8, 8), np.uint8), "r": np.zeros((0, 4, 6, 6), np.uint8)}
    feeds = {given.name: feeds[given.name] for given in session.get_inputs()}
    assert session.run(None, feeds)[0].shape[0] == 0


def test_only_a_convolution_goes_on_in_bytes():
    rounding = replace(ROUNDING, then=MaxPool((2, 2), (2, 2), (0, 0, 0, 0)))
    with pytest.raises(ValueError, match="only a quantised convolution"):
        sparse_node("l", ir.Value(name="x"), "y", PACKED, epilogue=rounding)


def test_an_addition_has_a_residual():
    rounding = Rounding(np.ones(4, np.float32), 3, 5, then=Addition(1, 1, 0, 0))
    weights = pack(np.ones((4, 3, 3, 3), np.int8), block=4)
    with pytest.raises(ValueError, match="must have a residual"):
        sparse_node("c", ir.Value(name="x"), "y", weights, window=Window(), epilogue=rounding)
