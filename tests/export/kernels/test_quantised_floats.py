"""Quantised matrix products that go on in floats, against exact sums in float64."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from scipy.special import erf

from mfac_compress.export.sparse import Activation, Scaling, pack, pack_1x4, sparse_node

OPERATORS = 24
ACTIVATIONS = {
    "none": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "clip": lambda z: np.clip(z, -0.5, 1.5),
    "gelu": lambda z: z / 2 * (1 + erf(z / np.sqrt(2))),
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
}
ROUNDING = 4e-6
"""Of float32, relative to the terms of a sum; that of a GELU is below two units."""


def _activation(kind):
    return Activation(kind, (-0.5, 1.5) if kind == "clip" else None)


class _Drawn:
    """A random operator, its inputs and its result before rounding to bytes."""

    def __init__(self, random, name, *, rounds):
        outputs, inputs = (int(n) for n in random.integers(1, [150, 90]))
        rows = int(random.integers(1, 5) if random.random() < 0.4 else random.integers(1, 140))
        leading = [(rows,), (2, 1, rows), (1, rows)][random.integers(3)]
        kept = random.choice([0.0, 0.05, 0.3, 1.0])
        weight = random.integers(-128, 128, (outputs, inputs)) * (
            random.random((outputs, inputs)) < kept
        )
        x = random.integers(0, 256, (*leading, inputs)).astype(np.uint8)
        zero_point = int(random.integers(256))
        sums = (x.astype(np.int64) - zero_point) @ weight.T
        scales = (random.uniform(0.5, 4, outputs) / (1 + np.abs(sums).max())).astype(np.float32)
        has_bias, has_residual = random.random(2) < 0.5
        bias = random.standard_normal(outputs).astype(np.float32) if has_bias else None
        residual = random.standard_normal(sums.shape).astype(np.float32)
        kind = str(random.choice(list(ACTIVATIONS)))
        z = sums * scales.astype(np.float64)
        self.size = np.abs(z) + (0 if bias is None else np.abs(bias)) + 1
        z = z if bias is None else z + bias
        self.arrays = {f"{name}.x": x}
        if has_residual and not rounds:
            z, self.size = z + residual, self.size + np.abs(residual)
            self.arrays[f"{name}.r"] = residual
        self.z = ACTIVATIONS[kind](z)
        self.output = (float(np.float32(random.uniform(0.002, 0.03))), int(random.integers(256)))
        packed = weight.astype(np.int8)
        packed = pack_1x4(packed) if random.random() < 0.4 else pack(packed, block=4)
        self.node = sparse_node(
            name,
            ir.Value(name=f"{name}.x"),
            f"{name}.y",
            packed,
            bias=bias,
            residual=ir.Value(name=f"{name}.r") if f"{name}.r" in self.arrays else None,
            epilogue=Scaling(
                scales, zero_point, _activation(kind), self.output if rounds else None
            ),
        )


def _run(sessions, drawn, threads, kind):
    arrays = {name: array for one in drawn for name, array in one.arrays.items()}
    names = [one.node.outputs[0].name for one in drawn]
    kinds = {n: TensorProto.UINT8 for n, array in arrays.items() if array.dtype == np.uint8}
    kinds |= dict.fromkeys(names, kind)
    session = sessions.open([one.node for one in drawn], names, threads=threads, kinds=kinds)
    return session.run(None, arrays)


@pytest.mark.parametrize("seed", range(8))
def test_floats_are_those_of_exact_sums(sessions_by_set, seed):
    random = np.random.default_rng(seed)
    drawn = [_Drawn(random, f"o{i}", rounds=False) for i in range(OPERATORS)]
    for instruction_set, sessions in sessions_by_set.items():
        found = _run(sessions, drawn, 1 + seed % 4, TensorProto.FLOAT)
        for one, y in zip(drawn, found, strict=True):
            assert y.dtype == np.float32
            near = np.abs(y - one.z) <= ROUNDING * one.size
            assert near.all(), (one.node.name, instruction_set)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_are_the_nearest_to_exact_sums(sessions_by_set, seed):
    random = np.random.default_rng(seed)
    drawn = [_Drawn(random, f"o{i}", rounds=True) for i in range(OPERATORS)]
    for instruction_set, sessions in sessions_by_set.items():
        found = _run(sessions, drawn, 1 + seed % 4, TensorProto.UINT8)
        for one, y in zip(drawn, found, strict=True):
            scale, zero_point = one.output
            exact = np.clip(one.z / scale + zero_point, 0, 255)
            near = np.abs(y - exact) <= 0.5 + ROUNDING * one.size / scale
            assert near.all(), (one.node.name, instruction_set)


def test_a_tie_is_rounded_to_even(sessions):
    """Steps of 1/2, which float32 represents: QuantizeLinear rounds 0.5 to 0 and 1.5 to 2."""
    x = np.arange(12, dtype=np.uint8)[:, None]
    node = sparse_node(
        "l",
        ir.Value(name="x"),
        "y",
        pack(np.ones((1, 1), np.int8), block=4),
        epilogue=Scaling(np.ones(1, np.float32), 4, output=(2.0, 10)),
    )
    session = sessions.open([node], kind=TensorProto.UINT8)
    (y,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(y[:, 0], 10 + np.rint((x[:, 0].astype(float) - 4) / 2))


def _linear(rows_of=8, residual=True, **changes):
    """x [..., 8] to [..., 8], with a bias and perhaps a residual."""
    epilogue = replace(Scaling(np.full(rows_of, 0.01, np.float32), 3), **changes)
    return sparse_node(
        "l",
        ir.Value(name="x"),
        "y",
        pack(np.eye(8, dtype=np.int8), block=4),
        bias=np.zeros(8, np.float32),
        residual=ir.Value(name="r") if residual else None,
        epilogue=epilogue,
    )


TO_FLOAT = {"x": TensorProto.UINT8}


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_residual_that_is_not_finite_stays_it(sessions, rows, value):
    session = sessions.open([_linear()], kinds=TO_FLOAT)
    residual = np.zeros((rows, 8), np.float32)
    residual[-1, 3] = value
    (y,) = session.run(None, {"x": np.zeros((rows, 8), np.uint8), "r": residual})
    np.testing.assert_array_equal(y[-1, 3], np.float32(value))
    assert np.isfinite(np.delete(y.ravel(), y.size - 5)).all()


@pytest.mark.parametrize("shape", [(39, 8), (40, 7), (1, 40, 8), (8,)])
def test_a_residual_of_another_shape_is_refused(any_sessions, shape):
    session = any_sessions.open([_linear()], kinds=TO_FLOAT)
    with pytest.raises(Exception, match="residual must have the output's shape"):
        session.run(None, {"x": np.zeros((40, 8), np.uint8), "r": np.zeros(shape, np.float32)})


@pytest.mark.parametrize("shape", [(8, 7), (7,), ()])
def test_an_input_of_another_width_is_refused(any_sessions, shape):
    session = any_sessions.open([_linear(residual=False)], kinds=TO_FLOAT)
    with pytest.raises(Exception, match=r"X must be \[\.\.\., 8\]"):
        session.run(None, {"x": np.zeros(shape, np.uint8)})


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_no_rows_give_no_rows(any_sessions, shape):
    session = any_sessions.open([_linear(residual=False)], kinds=TO_FLOAT)
    (y,) = session.run(None, {"x": np.zeros(shape, np.uint8)})
    assert y.shape == shape


def _with(node, tensors=(), **attributes):
    """Return the node with some of its attributes (None: without) and tensors replaced."""
    given = {name: attribute.value for name, attribute in node.attributes.items()} | attributes
    given = {name: value for name, value in given.items() if value is not None}
    new = {name: ir.Value(name=name, const_value=ir.tensor(a, name=name)) for name, a in tensors}
    inputs = [value and new.get(value.name, value) for value in node.inputs]
    return ir.node(node.op_type, inputs, given, domain=node.domain, outputs=[ir.Value(name="y")])


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"l.scales": np.full(8, np.nan, np.float32)}, "finite"),
        ({"l.scales": np.full(8, -1, np.float32)}, "not negative"),
        ({"l.scales": np.full(8, 2e28, np.float32)}, "scales must be at most 1e28"),
        ({"l.scales": np.ones(7, np.float32)}, "one number an output"),
        ({"l.bias": np.full(8, np.nan, np.float32)}, "bias must be finite"),
        ({"l.bias": np.full(8, -2e38, np.float32)}, "bias must be finite, and at most"),
        ({"l.bias": np.ones(9, np.float32)}, "one number an output"),
    ],
)
def test_constants_that_do_not_fit_are_refused(any_sessions, tensors, message, rounds):
    node = _linear(residual=not rounds, output=(0.1, 7) if rounds else None)
    kinds = TO_FLOAT | ({"y": TensorProto.UINT8} if rounds else {})
    with pytest.raises(Exception, match=message):
        any_sessions.open([_with(node, tensors.items())], kinds=kinds)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"y_scale": 0.0}, "y_scale must be finite and positive"),
        ({"y_scale": -1.0}, "y_scale must be finite and positive"),
        ({"y_scale": float("inf")}, "y_scale must be finite and positive"),
        ({"y_scale": float("nan")}, "y_scale must be finite and positive"),
        ({"y_scale": 1}, "y_scale must be given, as a float"),
        ({"y_zero_point": 256}, "y_zero_point must lie in"),
        ({"x_zero_point": -1}, "x_zero_point must lie in"),
        ({"activation": "tanh"}, "activation must be"),
        ({"activation": "clip"}, "min must be given"),
        ({"block": 8}, "block must be"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(any_sessions, attributes, message):
    node = _with(_linear(residual=False, output=(0.1, 7)), **attributes)
    with pytest.raises(Exception, match=message):
        any_sessions.open([node], kind=TensorProto.UINT8)


def test_every_attribute_must_be_given(any_sessions):
    for node, kinds in (
        (_linear(residual=False), TO_FLOAT),
        (_linear(residual=False, output=(0.1, 7)), TO_FLOAT | {"y": TensorProto.UINT8}),
    ):
        any_sessions.open([node], kinds=kinds)
        for name in set(node.attributes) - {"block"}:  # without it the weights are in quads
            with pytest.raises(Exception, match=f"{name} must be given"):
                any_sessions.open([_with(node, **{name: None})], kinds=kinds)


def test_a_node_that_no_operator_computes_is_not_built():
    with pytest.raises(ValueError, match="has no residual"):
        _linear(output=(0.1, 7))
    with pytest.raises(ValueError, match="scales must be"):
        _linear(rows_of=7)
