"""Projections of one input for one attention become one operator that computes the same bits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from mfac_compress.export import Variant, Workload, audit_zeros, export_onnx, write_model
from mfac_compress.export.sparse import whole
from mfac_compress.export.sparse.attention import Attention, attention_node
from mfac_compress.export.sparse.attention_layouts import find_attention
from mfac_compress.export.sparse.choose import Segment
from mfac_compress.export.sparse.compose import add_constants, name_nodes
from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.find import find_layers, fuse
from mfac_compress.export.sparse.format import Block, pack_as
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Placement
from mfac_compress.export.sparse.nodes import (
    DOMAIN,
    NO_ACTIVATION,
    VERSION,
    Activation,
    Scaling,
    sparse_node,
)
from mfac_compress.export.sparse.probe import shapes_of
from mfac_compress.export.sparse.read_back import packed_weights
from mfac_compress.export.sparse.stacked_projections import stack_projections

HEADS, SIZE, INPUTS = 2, 8, 40
WIDTH = HEADS * SIZE
ATTENTION = Attention("attention", "q", "k", "v", "y", None, HEADS, SIZE, (0, 0, 0), 0.3, False)
RELU = Activation("relu")
IN_FOURS = Block(4)
TWO_INPUTS = dict.fromkeys("xz", (None, None, INPUTS))


@dataclass
class Projection:
    """A layer, float32 or of bytes, and its arguments."""

    name: str
    x: str = "x"
    outputs: int = WIDTH
    block: Block = IN_FOURS
    has_bias: bool = True
    activation: Activation = NO_ACTIVATION
    residual: str | None = None
    in_8_bits: bool = False
    seed: int | None = None

    def __post_init__(self):
        random = np.random.default_rng(sum(map(ord, self.name)) if self.seed is None else self.seed)
        kept = random.random((self.outputs, INPUTS)) < 0.5
        weight = (
            random.integers(-50, 50, kept.shape)
            if self.in_8_bits
            else random.normal(size=kept.shape)
        )
        self.weight = (weight * kept).astype(np.int8 if self.in_8_bits else np.float32)
        self.scales = random.uniform(1e-4, 2e-4, self.outputs).astype(np.float32)
        bias = random.normal(size=self.outputs).astype(np.float32)
        self.bias = bias if self.has_bias else None

    def node(self, values):
        scaling = Scaling(self.scales, 100, self.activation)
        return sparse_node(
            self.name,
            values[self.x],
            f"{self.name}.out",
            pack_as(self.weight, self.block),
            bias=self.bias,
            residual=values.get(self.residual),
            epilogue=scaling if self.in_8_bits else self.activation,
        )

    def expected(self, x):
        """In float64, without a residual."""
        x = x.astype(np.float64) - (100 if self.in_8_bits else 0)
        y = x @ self.weight.T.astype(np.float64) * (self.scales if self.in_8_bits else 1)
        y = y if self.bias is None else y + self.bias
        return np.maximum(y, 0) if self.activation is RELU else y


QKV = {name: Projection(name) for name in "qkv"}


@dataclass
class Case:
    """Projections and one attention of them, or several."""

    projections: Mapping[str, Projection]
    found: tuple[Attention, ...] = (ATTENTION,)
    outputs: tuple[str, ...] = ()
    inputs: Mapping[str, tuple] = field(default_factory=lambda: {"x": (None, None, INPUTS)})

    def model(self):
        in_8_bits = any(each.in_8_bits for each in self.projections.values())
        dtype = ir.DataType.UINT8 if in_8_bits else ir.DataType.FLOAT
        values = {
            name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
            for name, shape in self.inputs.items()
        }
        layers = [each.node(values) for each in self.projections.values()]
        made = dict(zip(self.projections, (node.outputs[0] for node in layers), strict=True))
        attention = [
            attention_node(each, [(made | values)[name] for name in each.inputs])
            for each in self.found
        ]
        results = [node.outputs[0] for node in attention] + [made[name] for name in self.outputs]
        for value in results:
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape((None, None, None))
        graph = ir.Graph(
            list(values.values()),
            results,
            nodes=[*layers, *attention],
            opset_imports={"": 20, DOMAIN: VERSION},
            name="test",
        )
        stored, taken = {}, set()
        for node in layers:
            add_constants(graph, node, stored, taken)
        return ir.Model(graph, ir_version=9)


def _kinds(model):
    return [node.op_type for node in model.graph]


def _layers(model):
    return {node.name for node in model.graph if node.op_type != "Attention"}


def _run(model, feeds, kernels):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(kernels))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def _feeds(case, *shape, seed=0):
    random = np.random.default_rng(seed)
    in_8_bits = any(each.in_8_bits for each in case.projections.values())
    return {
        name: random.integers(256, size=(*shape, INPUTS), dtype=np.uint8)
        if in_8_bits
        else random.standard_normal((*shape, INPUTS), np.float32)
        for name in case.inputs
    }


def _attention(found, q, k, v):
    """In float64; all ``[batch, length, features]``."""
    q, k, v = (
        rows[..., offset:][..., :WIDTH].reshape(*rows.shape[:2], HEADS, SIZE).swapaxes(1, 2)
        for rows, offset in zip((q, k, v), found.offsets, strict=True)
    )
    scores = q @ k.swapaxes(2, 3) * found.scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = weights / weights.sum(-1, keepdims=True) @ v
    return y.swapaxes(1, 2).reshape(len(y), -1, WIDTH)


@pytest.fixture
def stacked(kernels):
    """Stack projections, and compare the outputs bit by bit, and with float64."""

    def check(case, names, shapes=((1, 1), (2, 9), (1, 70))):
        model = case.model()
        before = case.model()
        assert stack_projections(model) == len(names - set(case.projections))
        assert _layers(model) == names
        for shape in shapes:
            feeds = _feeds(case, *shape)
            ours, theirs = (_run(each, feeds, kernels) for each in (model, before))
            for a, b in zip(ours, theirs, strict=True):
                assert a.tobytes() == b.tobytes()
            rows = {name: each.expected(feeds[each.x]) for name, each in case.projections.items()}
            for y, found in zip(ours, case.found, strict=False):
                expected = _attention(found, *(rows[name] for name in found.inputs))
                np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)
        return model

    return check


@pytest.mark.parametrize("size", [1, 4, 8, 16])
@pytest.mark.parametrize("biases", ["qkv", "qv", ""])
def test_three_become_one(stacked, size, biases):
    """Some models have no bias for keys."""
    case = Case({n: Projection(n, block=Block(size), has_bias=n in biases) for n in "qkv"})
    model = stacked(case, {"q+k+v"})
    assert _kinds(model) == ["SparseLinear", "Attention"]
    assert len(model.graph.initializers) == (4 if biases else 3)


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
@pytest.mark.parametrize("biases", ["qkv", "k", ""])
def test_three_of_bytes_become_one(stacked, axis, biases):
    case = Case(
        {
            n: Projection(n, block=Block(4, axis), has_bias=n in biases, in_8_bits=True)
            for n in "qkv"
        }
    )
    assert _kinds(stacked(case, {"q+k+v"})) == ["SparseQLinearToFloat", "Attention"]


def test_an_activation_that_all_have_stays(stacked):
    model = stacked(Case({n: Projection(n, activation=RELU) for n in "qkv"}), {"q+k+v"})
    assert model.graph[0].attributes["activation"].value == "relu"


def test_rows_that_are_not_finite_stay(kernels):
    case = Case(QKV)
    model = case.model()
    stack_projections(model)
    feeds = _feeds(case, 3, 9)
    feeds["x"][1, 2, 3], feeds["x"][2, 0, 0] = np.nan, np.inf
    ours, theirs = (_run(each, feeds, kernels)[0] for each in (model, case.model()))
    np.testing.assert_array_equal(ours, theirs)
    assert np.isnan(ours[1]).all()
    assert np.isfinite(ours[0]).all()


def test_offsets_count_from_the_begin_of_each_layer(stacked):
    """Layers may make more features than attention reads."""
    outputs = {"q": WIDTH + 8, "k": WIDTH + 12, "v": WIDTH}
    projections = {name: Projection(name, outputs=count) for name, count in outputs.items()}
    found = replace(ATTENTION, offsets=(8, 4, 0))
    model = stacked(Case(projections, (found,)), {"q+k+v"})
    offsets = [model.graph[-1].attributes[f"{n}_offset"].value for n in ("query", "key", "value")]
    assert offsets == [8, 24 + 4, 24 + 28]


def test_the_length_may_come_first(kernels):
    case = Case(QKV, (replace(ATTENTION, length_first=True),))
    model = case.model()
    assert stack_projections(model) == 1
    feeds = _feeds(case, 9, 3)
    assert np.array_equal(_run(model, feeds, kernels), _run(case.model(), feeds, kernels))


def test_keys_and_values_of_another_input_are_stacked_without_the_queries(stacked):
    projections = {n: Projection(n, x="x" if n == "q" else "z") for n in "qkv"}
    stacked(Case(projections, inputs=TWO_INPUTS), {"q", "k+v"})


def test_two_operands_may_be_one(stacked):
    found = replace(ATTENTION, key="q")
    stacked(Case({n: QKV[n] for n in "qv"}, (found,)), {"q+v"})


def test_each_attention_has_its_own(stacked):
    others = {name: Projection(name) for name in "abc"}
    found = replace(ATTENTION, name="other", query="a", key="b", value="c", y="z")
    stacked(Case(QKV | others, (ATTENTION, found)), {"q+k+v", "a+b+c"})


def test_equal_weights_are_stored_once(stacked):
    """As of layers that share their weights."""
    others = {n: Projection(n, seed=i) for i, n in enumerate("abcdef")}
    others |= {b: replace(others[a], name=b) for a, b in zip("abc", "def", strict=True)}
    found = [
        replace(ATTENTION, name=f"of {q}", query=q, key=k, value=v, y=f"{q}.y")
        for q, k, v in ("abc", "def")
    ]
    model = stacked(Case(others, tuple(found)), {"a+b+c", "d+e+f"})
    assert len(model.graph.initializers) == 4


def test_names_in_use_are_avoided(kernels):
    case = Case(QKV)
    model = case.model()
    model.graph[-1].outputs[0].name = "q+k+v.y"
    model.graph[-1].name = "q+k+v"
    model.graph[0].inputs[1].name = "q+k+v.values"
    stack_projections(model)
    feeds = _feeds(case, 2, 9)
    assert np.array_equal(_run(model, feeds, kernels), _run(case.model(), feeds, kernels))


LEFT = {
    "another reader": Case(QKV, (ATTENTION, replace(ATTENTION, name="b", query="k", y="z"))),
    "an output": Case(QKV, outputs=("q", "v")),
    "other blocks": Case(
        {n: Projection(n, block=Block(b)) for n, b in zip("qkv", (1, 4, 8), strict=True)}
    ),
    "other activations": Case(
        {"q": QKV["q"], "k": Projection("k", activation=RELU), "v": Projection("v", x="z")},
        inputs=TWO_INPUTS,
    ),
    "blocks that are not whole": Case({n: Projection(n, outputs=WIDTH + 2) for n in "qkv"}),
    "residuals": Case(
        {n: Projection(n, residual="r") for n in "qkv"},
        inputs={"x": (None, None, INPUTS), "r": (None, None, WIDTH)},
    ),
    "masks": Case({n: QKV[n] for n in "qk"}, (replace(ATTENTION, value="q", mask="k"),)),
}


@pytest.mark.parametrize("reason", LEFT)
def test_others_are_left(reason):
    model = LEFT[reason].model()
    before = ir.to_proto(model).SerializeToString()
    assert stack_projections(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


# Whole files.


class _SelfAttention(nn.Module):
    """Its masks remove other weights of each projection."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(INPUTS, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, 8)

    def forward(self, x):
        q, k, v = (
            each(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) / SIZE**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.fixture
def exported(tmp_path):
    """A file, the masks of its weights, its graph with a plan for all layers, and its attention."""
    torch.manual_seed(0)
    module = _SelfAttention().eval()
    masks = {name: torch.rand_like(p) < 0.3 for name, p in module.named_parameters() if p.ndim > 1}
    for name, mask in masks.items():
        module.get_parameter(name).data *= mask
    path, x = tmp_path / "plain.onnx", torch.randn(2, 9, INPUTS)
    export_onnx(module, x, path)
    model = read_model(path)
    name_nodes(model)
    graph, feeds = Graph(model), {"input": x.numpy()}
    values = {v.name for node in graph.nodes for v in (*node.inputs[:1], *node.outputs)}
    plan = {
        each: Placement(Block(4))
        for each in fuse(graph, find_layers(graph), shapes_of(model, values, feeds))
    }
    return path, masks, graph, plan, find_attention(graph, feeds)


@pytest.fixture
def chosen(exported, monkeypatch):
    """Chooses among the forms of a file: that with the fewest nodes, or the most."""
    _, _, graph, plan, attention = exported

    def choose(fewest):
        def time_models(models, feeds, *, threads, rounds):
            dense, *others = (len(model.graph) for model in models)
            return [[9.0 * dense], *([float(n if fewest else 9 - n)] for n in others)]

        monkeypatch.setattr(whole, "time_models", time_models)
        return whole.fastest_model(graph, [Segment(plan, 0.5)], {Workload(2, 1): {}}, attention)

    return choose


@pytest.mark.parametrize("fewest", [False, True])
def test_the_times_decide(chosen, fewest):
    model = chosen(fewest).model
    stacked = [node for node in model.graph if "stacked_names" in node.attributes]
    assert len(stacked) == fewest
    assert _kinds(model).count("SparseLinear") == (2 if fewest else 4)


@pytest.fixture
def files(exported, chosen, tmp_path, kernels):
    """The plain file, and one in which the projections are stacked."""
    model = chosen(True).model
    write_model(model, tmp_path / "sparse.onnx")
    return [
        Variant("plain", exported[0]),
        Variant("kernels", tmp_path / "sparse.onnx", kernels, made_from="plain"),
    ]


def test_weights_are_read_back_by_layer(files, exported):
    plain, sparse = (ir.load(each.path) for each in files)
    found = dict(packed_weights(sparse, plain))
    assert len(found) == len(exported[1])
    for name, weight in found.items():
        stored = plain.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(weight, stored)


def test_every_removed_weight_is_audited_under_its_layers_name(files, exported):
    masks = exported[1]
    for audit in audit_zeros(files, masks)["kernels"]:
        removed = int((~masks[audit.name]).sum())
        assert audit.intact
        assert audit.onnx_zeros == audit.optimized_zeros == audit.mask_zeros == removed > 0


@pytest.mark.parametrize("place", range(3))
def test_a_removed_weight_that_came_back_is_found_in_its_layer(files, exported, place):
    model = ir.load(files[1].path)
    (node,) = (node for node in model.graph if "stacked_names" in node.attributes)
    starts, values = (node.inputs[i].const_value.numpy().copy() for i in (3, 1))
    first = starts[place * WIDTH // 4]  # a block of this layer has a zero, for it has all patterns
    row, column = np.argwhere(values[first:] == 0)[0]
    values[first + row, column] = 1e-6
    node.inputs[1].const_value = ir.tensor(values, name=node.inputs[1].name)
    write_model(model, files[1].path)
    name = ("query", "key", "value")[place] + ".weight"
    for audit in audit_zeros(files, exported[1])["kernels"]:
        hit = audit.name == name
        assert audit.intact != hit
        assert audit.onnx_zeros == audit.optimized_zeros == audit.mask_zeros - hit
