"""Convolutions that copy what a tile reads equal dense ones: processors with 48 KiB of first cache
do so where each copy is read often."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export.sparse import Activation, Window, pack, sparse_node

RELU = Activation("relu")
ENOUGH = 4  # calls on one thread, after which work is no longer split
AROUND = {"pads": (1, 1, 1, 1)}
CASES = {
    "pixels": ((40, 30, 14, 14), 1, {}),
    "pixels, ranges": ((50, 400, 14, 14), 1, {}),
    "pixels, many sums": ((900, 400, 7, 7), 1, {}),
    "pixels, one vector": ((40, 30, 3, 5), 1, {}),
    "pixels, two tiles": ((40, 300, 1, 257), 1, {}),
    "pixels, strided": ((40, 200, 13, 27), 1, {"strides": (2, 2)}),
    "pixels, far apart": ((40, 30, 20, 29), 1, {"strides": (3, 3)}),
    "pixels, padded": ((40, 30, 9, 10), 1, {"pads": (1, 0, 0, 2)}),
    "window": ((40, 60, 14, 14), 3, AROUND),
    "window, narrow": ((40, 150, 7, 7), 3, AROUND),
    "window, several tiles": ((40, 30, 31, 28), 3, AROUND),
    "window, whole rows": ((40, 30, 20, 16), 3, AROUND),
    "window, rows of planes": ((40, 30, 9, 15), 3, AROUND),
    "window, strided": ((40, 60, 29, 27), 3, {"strides": (2, 2), **AROUND}),
    "window, far apart": ((40, 60, 20, 21), 3, {"strides": (3, 2), "pads": (2, 0, 1, 3)}),
    "window, dilated": ((40, 30, 17, 14), 3, {"dilations": (2, 2), "pads": (2, 2, 2, 2)}),
    "window, without padding": ((40, 30, 16, 18), 3, {}),
    "window of five": ((40, 30, 12, 14), 5, {"pads": (2, 2, 2, 2)}),
}


def _sparse(random, *shape):
    weight = random.standard_normal(shape).astype(np.float32)
    return weight * (random.random(shape) < 0.4) / np.float32(np.sqrt(np.prod(shape[1:])))


def _dense(sessions, x, weight, bias, window, group, residual):
    pads = window.get("pads", (0, 0, 0, 0))
    rest = {name: value for name, value in window.items() if name != "pads"}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=pads, group=group, **rest)]
    if residual is not None:
        nodes.append(helper.make_node("Add", ["c", "r"], ["s"]))
    nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["y"]))
    inputs = {"x": x} | ({"r": residual} if residual is not None else {})
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in {"w": weight, "b": bias}.items()],
    )
    return sessions.load(graph).run(None, inputs)[0]


class _Layer:
    """A convolution with a bias and a ReLU, its input, and what a dense one returns."""

    def __init__(self, sessions, case, *, batch=1, group=1, residual=False, bad=None):
        random = np.random.default_rng(0)
        (outputs, channels, height, width), size, self.window = CASES[case]
        self.group = group
        self.weight = _sparse(random, outputs * group, channels, size, size)
        self.bias = random.standard_normal(outputs * group).astype(np.float32)
        shape = (batch, channels * group, height, width)
        self.x = random.standard_normal(shape).astype(np.float32)
        self.residual = None
        arguments = (self.weight, self.bias, self.window, group)
        if residual:
            shape = _dense(sessions, self.x, *arguments, None).shape
            self.residual = random.standard_normal(shape).astype(np.float32)
        if bad:
            self.x[bad] = np.nan
        self.expected = _dense(sessions, self.x, *arguments, self.residual)
        self.inputs = {"x": self.x} | ({"r": self.residual} if residual else {})

    def nodes(self, block=1, planes=()):
        """Identities convert to planes and back."""
        name = {end: end + ".planes" if end in planes else end for end in "xyr"}
        inside = {name[end] for end in planes}
        sources = [end for end in planes if end in self.inputs]
        nodes = [_identity(end, name[end], self.inputs[end].shape[1], inside) for end in sources]
        nodes.append(
            sparse_node(
                "c",
                ir.Value(name=name["x"]),
                name["y"],
                pack(self.weight, block=block, group=self.group),
                bias=self.bias,
                residual=ir.Value(name=name["r"]) if "r" in self.inputs else None,
                epilogue=RELU,
                window=Window(**self.window),
                planes=inside,
            )
        )
        if "y" in planes:
            nodes.append(_identity("y.planes", "y", self.expected.shape[1], inside))
        return nodes

    def check(self, found):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(self.expected))
        np.testing.assert_allclose(found, self.expected, rtol=1e-4, atol=1e-4)


def _identity(x, y, channels, planes):
    weight = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    node = f"{x} to {y}"
    return sparse_node(node, ir.Value(name=x), y, pack(weight), window=Window(), planes=planes)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_a_dense_one(sessions, case, residual, block):
    layer = _Layer(sessions, case, residual=residual)
    session = sessions.open(layer.nodes(block), ["y"])
    layer.check(session.run(None, layer.inputs)[0])


@pytest.mark.parametrize("planes", ["x", "y", "r", "xyr"])
@pytest.mark.parametrize("case", CASES)
def test_reads_and_writes_planes(sessions, case, planes):
    layer = _Layer(sessions, case, residual=True)
    session = sessions.open(layer.nodes(planes=planes), ["y"])
    layer.check(session.run(None, layer.inputs)[0])


@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize("case", CASES)
def test_groups_and_batches(sessions, case, batch):
    layer = _Layer(sessions, case, batch=batch, group=2)
    session = sessions.open(layer.nodes(), ["y"], threads=2)
    layer.check(session.run(None, layer.inputs)[0])


@pytest.mark.parametrize("pixel", [(0, 0), (-1, -1), (-1, 1), (1, -2)])
@pytest.mark.parametrize("planes", ["", "y", "xy"])
@pytest.mark.parametrize(
    "case", ["pixels, ranges", "pixels, many sums", "window, narrow", "window, several tiles"]
)
def test_not_finite(sessions, case, planes, pixel):
    """In the last channel, which is in the last range, of the second image."""
    layer = _Layer(sessions, case, batch=3, residual=True, bad=(1, -1, *pixel))
    assert np.isnan(layer.expected).any()
    assert not np.isnan(layer.expected).all()
    session = sessions.open(layer.nodes(planes=planes), ["y"])
    layer.check(session.run(None, layer.inputs)[0])


@pytest.mark.parametrize("bad", [None, (0, -1, 3, 3)])
@pytest.mark.parametrize("case", ["pixels, ranges", "pixels, many sums", "window, several tiles"])
def test_output_in_the_residuals_memory(sessions, case, bad):
    """ONNX Runtime shares the memory only where both shapes are recorded in the file."""
    layer = _Layer(sessions, case, residual=True, bad=bad)
    channels, shape = layer.expected.shape[1], layer.expected.shape
    before, after = _identity("r", "q", channels, ()), _identity("z", "y", channels, ())
    (node,) = layer.nodes()
    node.replace_input_with(5, ir.Value(name="q"))
    node.outputs[0].name = "z"
    records = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "qz"]
    session = sessions.open([before, node, after], ["y"], records=records)
    layer.check(session.run(None, layer.inputs)[0])


@pytest.mark.parametrize(
    "case", ["pixels, ranges", "pixels, many sums", "window", "window, several tiles"]
)
def test_bits_depend_neither_on_threads_nor_on_whether_work_is_split(sessions, case):
    layer = _Layer(sessions, case, residual=True)
    several = [sessions.open(layer.nodes(), ["y"], threads=n) for n in range(2, 5)]
    alone = sessions.open(layer.nodes(), ["y"])
    results = [alone.run(None, layer.inputs)[0] for _ in range(ENOUGH)]
    results += [session.run(None, layer.inputs)[0] for session in several]
    layer.check(results[0])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
