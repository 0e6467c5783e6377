"""Invalid operators and inputs are errors of ONNX Runtime, at load if possible, never crashes."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from mfac_compress.export.sparse import Activation, Window, pack, planes_shape, sparse_node

WEIGHT = np.eye(8, dtype=np.float32)
KERNEL = np.ones((4, 2, 3, 3), dtype=np.float32)


def _linear(packed=None, **options):
    return sparse_node("l", ir.Value(name="x"), "y", packed or PACKED, **options)


def _conv(window=Window(), **options):  # noqa: B008
    return sparse_node("c", ir.Value(name="x"), "y", pack(KERNEL), window=window, **options)


def _with(node, **attributes):
    """Return the node with some of its attributes replaced; None: without it."""
    given = {name: attribute.value for name, attribute in node.attributes.items()} | attributes
    given = {name: value for name, value in given.items() if value is not None}
    names = [value.name for value in node.outputs]
    outputs = [ir.Value(name=name) for name in names]
    return ir.node(node.op_type, node.inputs, given, domain=node.domain, outputs=outputs)


def _ints(*values):
    return np.array(values, dtype=np.int32)


PACKED = pack(WEIGHT)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (replace(PACKED, indices=_ints(0, 1, 2, 3, 4, 5, 6, 8)), r"lie in \[0, 8\)"),
        (replace(PACKED, indices=_ints(0, 1, 2, 3, 4, 5, 6, -1)), r"lie in \[0, 8\)"),
        (replace(PACKED, starts=_ints(0, 2, 1, 3, 4, 5, 6, 7, 8)), "must not fall"),
        (replace(PACKED, starts=_ints(0, 2, 2, 3, 4, 5, 6, 7, 8), indices=_ints(*[0] * 8)), "rise"),
        (replace(PACKED, starts=_ints(1, 1, 2, 3, 4, 5, 6, 7, 8)), "begin with 0"),
        (replace(PACKED, starts=_ints(0, 1, 2, 3, 4, 5, 6, 7, 9)), "end with"),
        (replace(PACKED, starts=_ints(0, 1, 2, 3, 4, 5, 6, 8)), "one entry a group"),
        (replace(PACKED, values=np.ones((7, 1), np.float32)), "values must be"),
        (replace(PACKED, values=np.ones((8, 4), np.float32)), "values must be"),
        (replace(PACKED, values=np.ones(8, np.float32)), "2 dimensions"),
        (replace(PACKED, indices=_ints()), "end with"),
        (replace(PACKED, starts=_ints()), "one entry a group"),
    ],
)
def test_broken_weights_are_refused_at_load(any_sessions, packed, message):
    with pytest.raises(Exception, match=message):
        any_sessions.open([_linear(packed)])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"block": 3}, "block must be"),
        ({"block": 4}, "one entry a group"),
        ({"in_features": 0}, "must lie in"),
        ({"in_features": -1}, "must lie in"),
        ({"in_features": 2**62}, "must lie in"),
        ({"out_features": 2**31}, "must lie in"),
        ({"activation": "swish"}, "activation must be"),
        ({"activation": "a" * 5000}, "longer than"),
        ({"activation": "clip", "min": 2.0, "max": 1.0}, "min must not"),
    ],
)
def test_attributes_of_linear_are_refused_at_load(any_sessions, attributes, message):
    node = _linear()
    with pytest.raises(Exception, match=message):
        any_sessions.open([_with(node, **attributes)])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group": 0}, "multiple of group"),
        ({"group": 3}, "multiple of group"),
        ({"in_channels": 2**62}, "too large|must lie in"),
        ({"kernel_shape": [3]}, "strides must have 1 numbers"),
        ({"kernel_shape": [3, 3, 3]}, "2 numbers"),
        ({"kernel_shape": [0, 3]}, "must lie in"),
        ({"kernel_shape": [2**40, 2**40]}, "must lie in"),
        ({"kernel_shape": list(range(1, 40))}, "at most 16"),
        ({"strides": [0, 1]}, "must lie in"),
        ({"dilations": [1, -1]}, "must lie in"),
        ({"pads": [-1, 0, 0, 0]}, "must lie in"),
        ({"pads": [1, 1]}, "4 numbers"),
        ({"input_layout": "nhwc"}, "nchw or planes"),
    ],
)
def test_attributes_of_conv_are_refused_at_load(any_sessions, attributes, message):
    node = _conv(Window(pads=(1, 1, 1, 1)))
    with pytest.raises(Exception, match=message):
        any_sessions.open([_with(node, **attributes)])


LINEAR = {"out_features": 8.0, "in_features": "8", "block": [1], "activation": 3}
CLIP = {"min": 0, "max": "6"}
CONV = {
    "out_channels": 4.0,
    "in_channels": [2],
    "group": "1",
    "kernel_shape": 3,
    "strides": [1.0, 1.0],
    "pads": 1,
    "dilations": "11",
    "input_layout": 0,
    "output_layout": ["nchw"],
    "residual_layout": 1.0,
    "block": 1.0,
    "activation": ["relu"],
}


def _complete():
    """Return a node of each operator, and a value of a wrong type for each attribute."""
    clipped = Activation("clip", (0.0, 6.0))
    return {
        "linear": (_linear(), LINEAR),
        "clip": (_linear(epilogue=clipped), LINEAR | CLIP),
        "conv": (_conv(), CONV),
        "conv clip": (_conv(epilogue=clipped), CONV | CLIP),
    }


ATTRIBUTES = [(kind, name) for kind, (_, wrong) in _complete().items() for name in wrong]


@pytest.mark.parametrize("kind", _complete())
def test_every_attribute_is_written_and_read(any_sessions, kind):
    node, wrong = _complete()[kind]
    assert set(node.attributes) == set(wrong)
    any_sessions.open([node])


@pytest.mark.parametrize(("kind", "name"), ATTRIBUTES)
def test_an_attribute_that_is_missing_is_refused_at_load(any_sessions, kind, name):
    with pytest.raises(Exception, match=f"{name} must be given"):
        any_sessions.open([_with(_complete()[kind][0], **{name: None})])


@pytest.mark.parametrize(("kind", "name"), ATTRIBUTES)
def test_an_attribute_of_another_type_is_refused_at_load(any_sessions, kind, name):
    node, wrong = _complete()[kind]
    with pytest.raises(Exception, match=f"{name} must (be given|have)"):
        any_sessions.open([_with(node, **{name: wrong[name]})])


@pytest.mark.parametrize("index", [1, 2, 3])
def test_weights_must_be_constant(any_sessions, index):
    node = _linear()
    kinds = {1: 1, 2: 6, 3: 6}
    graph = helper.make_graph(
        [ir.to_proto(node)],
        "open",
        [
            helper.make_tensor_value_info("x", 1, None),
            helper.make_tensor_value_info(node.inputs[index].name, kinds[index], None),
        ],
        [helper.make_tensor_value_info("y", 1, None)],
        [ir.to_proto(node.inputs[n].const_value) for n in (1, 2, 3) if n != index],
    )
    with pytest.raises(Exception, match="must be a constant initializer"):
        any_sessions.load(graph)


def test_a_bias_must_be_constant(any_sessions):
    node = _linear()
    node.replace_input_with(4, ir.Value(name="b"))
    session = any_sessions.open([node])
    with pytest.raises(Exception, match="bias must be a constant"):
        session.run(None, {"x": np.ones((2, 8), np.float32), "b": np.ones(8, np.float32)})


@pytest.mark.parametrize("shape", [(), (7,), (8, 7), (2, 3, 9), (3, 0)])
def test_inputs_of_another_shape_are_refused(any_sessions, shape):
    session = any_sessions.open([_linear()])
    with pytest.raises(Exception, match=r"X must be \[\.\.\., 8\]"):
        session.run(None, {"x": np.ones(shape, np.float32)})


@pytest.mark.parametrize("layout", ["nchw", "planes"])
@pytest.mark.parametrize(
    "shape", [(1, 2, 5), (1, 3, 5, 5), (1, 2, 0, 5), (3, 6, 0), (3, 6, 5), (2, 7, 6), (1, 2, 1, 1)]
)
def test_images_of_another_shape_are_refused(any_sessions, layout, shape):
    node = _conv(planes={"x"} if layout == "planes" else ())
    session = any_sessions.open([node])
    with pytest.raises(Exception, match=r"must be|must have"):
        session.run(None, {"x": np.ones(shape, np.float32)})


def test_a_residual_must_have_the_shape_of_the_output(any_sessions):
    session = any_sessions.open([_linear(residual=ir.Value(name="r"))])
    with pytest.raises(Exception, match="residual must have"):
        session.run(None, {"x": np.ones((2, 8), np.float32), "r": np.ones((1, 8), np.float32)})


def test_an_empty_batch_gives_an_empty_batch(sessions):
    session = sessions.open([_linear()])
    assert session.run(None, {"x": np.ones((0, 8), np.float32)})[0].shape == (0, 8)
    conv = _conv(planes={"y"})
    y = sessions.open([conv]).run(None, {"x": np.ones((0, 2, 5, 6), np.float32)})[0]
    assert y.shape == planes_shape(0, 4, 3, 4)
