"""Layer norms and their bytes, against float64."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mfac_compress.export.sparse.layer_norm import layer_norm_node

OPERATORS = 16
ROUNDING = 1e-6
"""Of float32, relative to what is added."""
BYTES = (0.02, 117)


def _node(name, scale, bias=None, *, epsilon=1e-5, output=None, floats=True):
    arrays = {"scale": scale, "bias": bias}
    constants = [
        ir.Value(name=f"{name}.{key}", const_value=ir.tensor(array, name=f"{name}.{key}"))
        for key, array in arrays.items()
        if array is not None
    ]
    made = [f"{name}.y"] if output is None or not floats else [f"{name}.y", f"{name}.z"]
    return layer_norm_node(name, [ir.Value(name=f"{name}.x"), *constants], made, epsilon, output)


def _exact(x, scale, bias, epsilon=1e-5):
    """In float64, with a size of which rounding is a share: that of the row's largest value."""
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    largest = np.abs(normal).max(-1, keepdims=True, initial=0)
    return normal * scale + bias, largest * np.abs(scale) + np.abs(bias)


def _run(sessions, nodes, arrays, threads=1):
    names = [value.name for node in nodes for value in node.outputs]
    bytes_ = {n.outputs[0].name for n in nodes if n.op_type == "LayerNormQuantize"}
    kinds = dict.fromkeys(bytes_, TensorProto.UINT8)
    session = sessions.open(nodes, names, threads=threads, kinds=kinds)
    return dict(zip(names, session.run(names, arrays), strict=True))


class _Drawn:
    """A random operator and its input."""

    def __init__(self, random, name, output):
        width = int(random.choice([random.integers(1, 20), random.integers(1, 300), 64, 384]))
        rows = int(random.integers(1, 5) if random.random() < 0.5 else random.integers(1, 90))
        leading = [(rows,), (2, 1, rows), (1, rows), ()][random.integers(4)]
        spread, mean = 10.0 ** random.uniform(-2, 3), 10.0 ** random.uniform(-2, 2)
        x = random.standard_normal((*leading, width)) * spread
        self.x = (x + mean * spread * random.standard_normal()).astype(np.float32)
        scale, bias = random.standard_normal((2, width)).astype(np.float32)
        has_bias = random.random() < 0.7
        epsilon = float(np.float32(random.choice([1e-12, 1e-5, 1.0])))
        self.node = _node(name, scale, bias if has_bias else None, epsilon=epsilon, output=output)
        self.y, self.size = _exact(self.x, scale, bias if has_bias else 0.0, epsilon)


@pytest.mark.parametrize("seed", range(8))
def test_floats_are_those_of_float64(sessions_by_set, seed):
    random = np.random.default_rng(seed)
    drawn = [_Drawn(random, f"o{i}", None) for i in range(OPERATORS)]
    for instruction_set, sessions in sessions_by_set.items():
        arrays = {f"{one.node.name}.x": one.x for one in drawn}
        found = _run(sessions, [one.node for one in drawn], arrays, 1 + seed % 4)
        for one in drawn:
            y = found[f"{one.node.name}.y"]
            assert y.dtype == np.float32
            assert y.shape == one.x.shape
            near = np.abs(y - one.y) <= ROUNDING * one.size
            assert near.all(), (one.node.name, one.x.shape, instruction_set)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_are_the_nearest_and_floats_what_they_stand_for(sessions_by_set, seed):
    random = np.random.default_rng(seed)
    drawn = [_Drawn(random, f"o{i}", BYTES) for i in range(OPERATORS)]
    step, zero_point = np.float32(BYTES[0]), BYTES[1]
    for instruction_set, sessions in sessions_by_set.items():
        arrays = {f"{one.node.name}.x": one.x for one in drawn}
        found = _run(sessions, [one.node for one in drawn], arrays, 1 + seed % 4)
        for one in drawn:
            y, z = (found[f"{one.node.name}.{name}"] for name in "yz")
            assert (y.dtype, z.dtype) == (np.uint8, np.float32)
            exact = np.clip(one.y / step + zero_point, 0, 255)
            near = np.abs(y - exact) <= 0.5 + ROUNDING * one.size / step
            assert near.all(), (one.node.name, one.x.shape, instruction_set)
            np.testing.assert_array_equal(z, (y.astype(np.float32) - zero_point) * step)


@pytest.mark.parametrize("width", [3, 8, 16, 23, 384])
def test_the_floats_may_be_left_out(sessions, width):
    random = np.random.default_rng(0)
    x = random.standard_normal((7, width)).astype(np.float32)
    scale = random.standard_normal(width).astype(np.float32)
    nodes = [_node("a", scale, output=BYTES), _node("b", scale, output=BYTES, floats=False)]
    found = _run(sessions, nodes, {"a.x": x, "b.x": x})
    np.testing.assert_array_equal(found["a.y"], found["b.y"])


def test_a_tie_is_rounded_to_even(sessions):
    """Of -1 and 1 the mean is 0 and the variance 1: the results are ± scale."""
    x = np.tile(np.array([-1, 1], np.float32), 16)[None]
    scale = np.repeat(np.arange(16, dtype=np.float32) / 2, 2)
    (y,) = _run(
        sessions, [_node("a", scale, epsilon=1e-12, output=(1.0, 9), floats=False)], {"a.x": x}
    ).values()
    np.testing.assert_array_equal(y[0], 9 + np.rint(x[0] * scale))


@pytest.mark.parametrize("width", [1, 2, 5, 16, 37, 100, 384])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 3e4, 1e10, -7e15])
def test_a_constant_row_gives_the_bias(sessions, width, value):
    x = np.full((3, width), value, np.float32)
    scale, bias = np.random.default_rng(1).standard_normal((2, width)).astype(np.float32)
    (y,) = _run(sessions, [_node("a", scale, bias)], {"a.x": x}).values()
    np.testing.assert_allclose(y, np.broadcast_to(bias, x.shape), rtol=0, atol=1e-3)


@pytest.mark.parametrize("width", [5, 48, 200, 768])
@pytest.mark.parametrize("mean", [1e3, -1e5, 1e7])
def test_a_mean_much_larger_than_the_deviations_costs_no_accuracy(sessions, width, mean):
    """What rounding leaves out of the mean is found from the centred values, which are exact."""
    random = np.random.default_rng(width)
    x = (mean + random.standard_normal((9, width)) * abs(mean) ** 0.5).astype(np.float32)
    scale, bias = random.standard_normal((2, width)).astype(np.float32)
    (y,) = _run(sessions, [_node("a", scale, bias)], {"a.x": x}).values()
    exact, size = _exact(x, scale, bias)
    assert (np.abs(y - exact) <= ROUNDING * size).all()


@pytest.mark.parametrize("width", [2, 3, 16, 21, 100])  # older versions of ONNX Runtime refuse 1
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_value_that_is_not_finite_is_nan_as_in_onnx_runtime(sessions, width, value):
    random = np.random.default_rng(0)
    x = random.standard_normal((8, width)).astype(np.float32)
    scale, bias = random.standard_normal((2, width)).astype(np.float32)
    for row in (0, 3, 7):
        x[row, random.integers(width)] = value
    nodes = [_node("a", scale, bias), _node("b", scale, bias, output=BYTES)]
    found = _run(sessions, nodes, {"a.x": x, "b.x": x})
    theirs = _onnx_runtime(x, scale, bias)
    for name, expected in zip(("a.y", "b.y"), theirs, strict=True):
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(expected))
    np.testing.assert_array_equal(found["b.y"][[0, 3, 7]], theirs[1][[0, 3, 7]])


def test_a_variance_beyond_float32_is_nan_and_not_the_bias(sessions):
    """ONNX Runtime divides by its root, infinity, and adds the bias."""
    x = np.tile(np.array([-1e25, 1e25], np.float32), (2, 20))
    scale = np.ones(40, np.float32)
    (y,) = _run(sessions, [_node("a", scale)], {"a.x": x}).values()
    assert np.isnan(y).all()


def _onnx_runtime(x, scale, bias):
    """What ONNX Runtime's own operators make of it: floats and bytes."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], epsilon=1e-5),
        helper.make_node("QuantizeLinear", ["y", "step", "zero_point"], ["q"]),
    ]
    arrays = {
        "x": x,
        "scale": scale,
        "bias": bias,
        "step": np.array(BYTES[0], np.float32),
        "zero_point": np.array(BYTES[1], np.uint8),
    }
    graph = helper.make_graph(
        nodes,
        "plain",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays.items()
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("q", TensorProto.UINT8, None),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, arrays)


def test_results_do_not_depend_on_the_number_of_threads(sessions):
    random = np.random.default_rng(0)
    x = random.standard_normal((500, 130)).astype(np.float32)
    node = _node("a", random.standard_normal(130).astype(np.float32), output=BYTES)
    one, four = (_run(sessions, [node], {"a.x": x}, threads) for threads in (1, 4))
    for name in one:
        np.testing.assert_array_equal(one[name], four[name])


def test_an_empty_batch_gives_an_empty_batch(sessions):
    scale = np.ones(8, np.float32)
    nodes = [_node("a", scale), _node("b", scale, output=BYTES)]
    x = np.ones((2, 0, 8), np.float32)
    found = _run(sessions, nodes, {"a.x": x, "b.x": x})
    assert {y.shape for y in found.values()} == {x.shape}


SCALE = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (_node("a", np.ones((2, 4), np.float32)), "one dimension"),
        (_node("a", np.ones((), np.float32)), "one dimension"),
        (_node("a", np.ones(0, np.float32)), "at least one number"),
        (_node("a", SCALE, np.ones(7, np.float32)), "bias must have the shape"),
        (_node("a", SCALE, np.ones((1, 8), np.float32)), "bias must have the shape"),
        (_node("a", SCALE, epsilon=0.0), "epsilon must be"),
        (_node("a", SCALE, epsilon=-1e-5), "epsilon must be"),
        (_node("a", SCALE, epsilon=np.inf), "epsilon must be"),
        (_node("a", SCALE, epsilon=np.nan), "epsilon must be"),
        (_node("a", SCALE, output=(0.0, 3)), "y_scale must be"),
        (_node("a", SCALE, output=(-1.0, 3)), "y_scale must be"),
        (_node("a", SCALE, output=(np.nan, 3)), "y_scale must be"),
        (_node("a", SCALE, output=(0.1, 256)), "y_zero_point must lie"),
        (_node("a", SCALE, output=(0.1, -1)), "y_zero_point must lie"),
        (_node("a", SCALE * np.float32(1e38), output=(1e-3, 3)), "scale divided by y_scale"),
        (_node("a", SCALE, SCALE * np.float32(1e38), output=(1e-3, 3)), "bias divided by y_scale"),
        (_node("a", SCALE * np.float32(np.nan), output=(1.0, 3)), "scale divided by y_scale"),
    ],
)
def test_what_does_not_fit_is_refused_at_load(any_sessions, node, message):
    kinds = {"a.y": TensorProto.UINT8} if node.op_type == "LayerNormQuantize" else {}
    with pytest.raises(Exception, match=message):
        any_sessions.open([node], kinds=kinds)


@pytest.mark.parametrize(
    ("name", "wrong"), [("epsilon", 1), ("y_scale", "0.1"), ("y_zero_point", 3.0)]
)
@pytest.mark.parametrize("missing", [True, False])
def test_an_attribute_that_is_missing_or_of_another_type_is_refused(
    any_sessions, name, wrong, missing
):
    node = _node("a", SCALE, output=BYTES)
    if missing:
        del node.attributes[name]
    else:
        node.attributes.add(ir.convenience.convert_attributes({name: wrong})[0])
    with pytest.raises(Exception, match=f"{name} must be given"):
        any_sessions.open([node], kinds={"a.y": TensorProto.UINT8})


def test_the_scale_must_be_constant(any_sessions):
    node = layer_norm_node("a", [ir.Value(name="x"), ir.Value(name="s")], ["y"], 1e-5)
    with pytest.raises(Exception, match="scale must be a constant"):
        any_sessions.open([node])


def test_the_bias_must_be_constant(any_sessions):
    node = _node("a", SCALE, SCALE)
    node.replace_input_with(2, ir.Value(name="b"))
    session = any_sessions.open([node])
    with pytest.raises(Exception, match="bias must be a constant"):
        session.run(None, {"a.x": np.ones((2, 8), np.float32), "b": SCALE})


@pytest.mark.parametrize("output", [None, BYTES])
@pytest.mark.parametrize("shape", [(), (7,), (8, 7), (2, 3, 9), (3, 0), (8, 1)])
def test_inputs_of_another_width_are_refused(any_sessions, shape, output):
    kinds = {} if output is None else {"a.y": TensorProto.UINT8}
    session = any_sessions.open([_node("a", SCALE, output=output)], kinds=kinds)
    with pytest.raises(Exception, match=r"X must be \[\.\.\., 8\]"):
        session.run(None, {"a.x": np.ones(shape, np.float32)})


def test_bytes_that_nobody_names_are_refused(any_sessions):
    node = _node("a", SCALE, output=BYTES)
    node.outputs[0].name = ""
    with pytest.raises(Exception, match="output 0"):
        any_sessions.open([node], ["a.z"])
