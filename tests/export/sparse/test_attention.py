"""Attention is found however exporters write its layouts, and nothing else is taken for it."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from mfac_compress.export import Workload, export_onnx, measure_speed
from mfac_compress.export.quantise import StaticQuantiser
from mfac_compress.export.sparse import choose, speed, whole
from mfac_compress.export.sparse.attention import replace_attention
from mfac_compress.export.sparse.attention_check import exact_attention
from mfac_compress.export.sparse.attention_layouts import find_attention
from mfac_compress.export.sparse.compose import name_nodes
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.nodes import DOMAIN

HEADS, SIZE = 3, 4
WIDTH = HEADS * SIZE


def _find(model, feeds):
    copy = to_ir(onnx.ModelProto.FromString(model.SerializeToString()))
    name_nodes(copy)
    return copy, find_attention(Graph(copy), feeds)


def _run(model, feeds, library=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(str(library))
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


@pytest.fixture
def replaced(kernels):
    """Replace attention found with some inputs, and compare the outputs for others."""

    def check(model, feeds, *others, count=1):
        copy, found = _find(model, feeds)
        assert len(found) == count
        assert replace_attention(copy, found) == count
        sparse = ir.to_proto(copy)
        onnx.checker.check_model(sparse)
        for each in (feeds, *others):
            pairs = zip(_run(sparse, each, kernels), _run(model, each), strict=True)
            for ours, theirs in pairs:
                assert ours.shape == theirs.shape
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        return found, [node.op_type for node in sparse.graph.node]

    return check


# Modules that PyTorch exports.


class _Separate(nn.Module):
    """Projections apart, and a mask for each key, float or boolean."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, mask=None):
        batch, length, _ = x.shape
        q, k, v = (
            each(x).view(batch, length, HEADS, SIZE).transpose(1, 2)
            for each in (self.q, self.k, self.v)
        )
        mask = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(y.transpose(1, 2).reshape(batch, length, WIDTH))


class _Chunks(nn.Module):
    """One projection, cut into three."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            each.view(batch, length, HEADS, SIZE).transpose(1, 2)
            for each in self.qkv(x).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(2, 3) / SIZE**0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(batch, length, WIDTH))


class _Timm(_Chunks):
    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, HEADS, SIZE)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(batch, length, WIDTH))


class _Causal(_Chunks):
    """With a mask of queries and keys."""

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            each.view(batch, length, HEADS, SIZE).transpose(1, 2)
            for each in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, length, WIDTH))


class _Encoder(nn.Module):
    def __init__(self, layers=1):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x):
        return self.layers(x)


class _LengthFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, x):
        x = x.transpose(0, 1)
        return self.attention(x, x, x, need_weights=False)[0].transpose(0, 1)


def _x(batch, length):
    return torch.randn(batch, length, WIDTH)


def _exported(module, folder, example, **axes):
    torch.manual_seed(0)
    path = folder / "model.onnx"
    export_onnx(module.eval(), example, path, dynamic_axes=axes)
    return onnx.load(path)


@pytest.mark.parametrize("module", [_Separate, _Chunks, _Timm])
@pytest.mark.parametrize("open_length", [False, True])
def test_forms_of_self_attention(replaced, tmp_path, module, open_length):
    axes = {"input": {1: "length"}} if open_length else {}
    model = _exported(module(), tmp_path, _x(2, 9), **axes)
    shapes = [(1, 9), (2, 9), (5, 9)] + [(3, 4), (1, 1), (2, 70)] * open_length
    first, *others = ({"input": _x(*shape).numpy()} for shape in shapes)
    (found,), kinds = replaced(model, first, *others)
    assert (found.heads, found.size, found.mask) == (HEADS, SIZE, None)
    assert found.scale == pytest.approx(0.5)
    assert found.offsets == ((0,) * 3 if module is _Separate else (0, WIDTH, 2 * WIDTH))
    assert not {"Softmax", "Transpose", "Where", "Split", "Slice"} & set(kinds)


@pytest.mark.parametrize("module", [_Encoder, _LengthFirst])
@pytest.mark.parametrize("open_length", [False, True])
def test_forms_with_the_length_first(replaced, tmp_path, module, open_length):
    axes = {"input": {1: "length"}} if open_length else {}
    model = _exported(module(), tmp_path, _x(2, 9), **axes)
    shapes = [(2, 9), (1, 9), (5, 9)] + [(1, 1), (3, 20)] * open_length
    first, *others = ({"input": _x(*shape).numpy()} for shape in shapes)
    (found,), kinds = replaced(model, first, *others)
    assert found.length_first
    assert "Softmax" not in kinds
    assert kinds.count("Attention") == 1


@pytest.mark.parametrize("open_length", [False, True])
def test_causal_attention(replaced, tmp_path, open_length):
    axes = {"input": {1: "length"}} if open_length else {}
    model = _exported(_Causal(), tmp_path, _x(2, 9), **axes)
    shapes = [(2, 9), (1, 9)] + [(1, 1), (3, 20)] * open_length
    (found,), _ = replaced(model, *({"input": _x(*shape).numpy()} for shape in shapes))
    assert found.mask is not None


def test_several_layers(replaced, tmp_path):
    model = _exported(_Encoder(3), tmp_path, _x(2, 9))
    feeds = ({"input": _x(batch, 9).numpy()} for batch in (1, 4))
    found, _ = replaced(model, *feeds, count=3)
    assert len({each.name for each in found}) == 3


@pytest.mark.parametrize("boolean", [False, True])
def test_masks(replaced, tmp_path, boolean):
    """Of a boolean mask the exporter also replaces NaN, where no key is left."""

    def inputs(batch, length):
        mask = torch.rand(batch, length) < 0.6
        mask[:, 0] = True
        return {"x": _x(batch, length), "mask": mask if boolean else torch.randn(batch, length)}

    model = _exported(
        _Separate(), tmp_path, inputs(2, 9), x={1: "length"}, mask={1: "length"}
    )  # fmt: skip
    some = [inputs(*shape) for shape in ((2, 9), (1, 3), (4, 20))]
    some[2]["mask"][1] = False if boolean else -torch.inf
    feeds = [{name: each.numpy() for name, each in one.items()} for one in some]
    if not boolean:
        feeds[2]["mask"][1, 0] = 0
    (found,), _ = replaced(model, *feeds)
    assert found.mask is not None
    assert found.nan_to_zero == boolean


def test_a_file_in_8_bits(replaced, tmp_path):
    module = _Timm()
    _exported(module, tmp_path, _x(2, 9))
    batches = [{"input": _x(2, 9).numpy()} for _ in range(3)]
    quantiser = StaticQuantiser(tmp_path / "model.onnx", batches, scratch=tmp_path)
    quantiser.write(tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    assert any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    replaced(model, *({"input": _x(batch, 9).numpy()} for batch in (1, 3)))


# Graphs made by hand.

NODES = {
    "rq": ("Reshape", ["q", "split"], ["rq"]),
    "rk": ("Reshape", ["k", "split"], ["rk"]),
    "rv": ("Reshape", ["v", "split"], ["rv"]),
    "tq": ("Transpose", ["rq"], ["tq"], {"perm": [0, 2, 1, 3]}),
    "tk": ("Transpose", ["rk"], ["tk"], {"perm": [0, 2, 3, 1]}),
    "tv": ("Transpose", ["rv"], ["tv"], {"perm": [0, 2, 1, 3]}),
    "p": ("MatMul", ["tq", "tk"], ["p"]),
    "s": ("Mul", ["p", "scale"], ["s"]),
    "w": ("Softmax", ["s"], ["w"], {"axis": -1}),
    "z": ("MatMul", ["w", "tv"], ["z"]),
    "t": ("Transpose", ["z"], ["t"], {"perm": [0, 2, 1, 3]}),
    "y": ("Reshape", ["t", "joint"], ["y"]),
}
INPUTS = {"q": ["n", "s", WIDTH], "k": ["n", "t", WIDTH], "v": ["n", "t", WIDTH]}
CONSTANTS = {
    "split": np.array([0, 0, HEADS, SIZE]),
    "joint": np.array([0, 0, WIDTH]),
    "scale": np.float32(0.3),
    "factor": np.float32(0.7),
    "negative": np.float32(-0.3),
    "tiny": np.float32(1e-30),
    "of five axes": np.full((1,) * 5, 0.3, np.float32),
    "zero": np.float32(0),
    "0": np.array([0]),
    "1": np.array([1]),
    "9": np.array([9]),
    "thirds": np.array([WIDTH] * 3),
}


@pytest.fixture
def made(make_model):
    """A graph in which some nodes of the usual one are replaced by others."""

    def make(changes=None, inputs=None, outputs=("y",), opset=17, **constants):
        nodes = NODES | (changes or {})
        nodes = [n for each in nodes.values() for n in (each if isinstance(each, list) else [each])]
        shapes = INPUTS | (inputs or {})
        shapes = {name: shape for name, shape in shapes.items() if shape}
        constants = CONSTANTS | constants
        return make_model(nodes, shapes, outputs, opset=opset, **constants)

    return make


def _feeds(model, **sizes):
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or sizes[d.dim_param] for d in kind.shape.dim]
        if kind.elem_type == TensorProto.INT64:
            feeds[value.name] = np.arange(shape[0])
        else:
            dtype = np.float64 if kind.elem_type == TensorProto.DOUBLE else np.float32
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def _sizes(model, first, *others):
    return [_feeds(model, n=n, s=s, t=t) for n, s, t in (first, *others)]


ADDED = [("Mul", ["p", "scale"], ["scaled"]), ("Add", ["scaled", "m"], ["s"])]
WITHOUT_NAN = [
    ("Softmax", ["s"], ["soft"], {"axis": 3}),
    ("IsNaN", ["soft"], ["nan"]),
    ("Where", ["nan", "zero", "soft"], ["w"]),
]
ACCEPTED = {
    "as usual": {},
    "no scale": {"s": [], "w": ("Softmax", ["p"], ["w"], {"axis": -1})},
    "divided": {"s": ("Div", ["p", "scale"], ["s"])},
    "a scale on both sides": {
        "tq": [NODES["tq"], ("Mul", ["tq", "scale"], ["sq"])],
        "tk": [NODES["tk"], ("Mul", ["factor", "tk"], ["sk"])],
        "p": ("MatMul", ["sq", "sk"], ["p"]),
    },
    "two negative scales": {
        "rq": [("Mul", ["q", "negative"], ["nq"]), ("Reshape", ["nq", "split"], ["rq"])],
        "s": ("Mul", ["negative", "p"], ["s"]),
    },
    "NaN replaced": {"w": WITHOUT_NAN},
    "a softmax along axis 3": {"w": ("Softmax", ["s"], ["w"], {"axis": 3})},
}  # fmt: skip


@pytest.mark.parametrize("form", ACCEPTED)
def test_forms_that_are_attention(replaced, made, form):
    model = made(ACCEPTED[form])
    replaced(model, *_sizes(model, (1, 9, 7), (3, 2, 20), (2, 1, 1)))


@pytest.mark.parametrize(
    "shape", [["t"], ["s", "t"], [1, "t"], [HEADS, 1, "t"], [1, HEADS, "s", "t"], ["n", 1, 1, "t"]]
)
@pytest.mark.parametrize("first", [False, True])
def test_masks_of_all_shapes(replaced, made, shape, first):
    inputs = ["m", "scaled"] if first else ["scaled", "m"]
    model = made({"s": [ADDED[0], ("Add", inputs, ["s"])]}, {"m": shape})
    (found,), _ = replaced(model, *_sizes(model, (2, 9, 7), (3, 2, 20)))
    assert found.mask == "m"


def test_a_sum_of_two_products(replaced, made):
    """As with relative positions: one of them is the mask."""
    added = [
        ("MatMul", ["tq", "r"], ["relative"]),
        ("Mul", ["p", "scale"], ["scaled"]),
        ("Add", ["relative", "scaled"], ["s"]),
    ]
    model = made({"s": added}, {"r": ["n", HEADS, SIZE, "t"]})
    replaced(model, *_sizes(model, (2, 9, 7), (3, 2, 20)))


def test_operands_that_are_outputs_stay(replaced, made):
    model = made(outputs=("y", "tq", "rk"))
    _, kinds = replaced(model, *_sizes(model, (2, 9, 7), (3, 2, 20)))
    assert kinds.count("Transpose") == 1


def test_ends_that_are_outputs_stay(replaced, made):
    changes = {"s": ADDED, "rq": [("Relu", ["q"], ["a"]), ("Reshape", ["a", "split"], ["rq"])]}
    model = made(changes | {"tv": [NODES["tv"], ("Neg", ["l"], ["m"])]}, {"l": ["s", "t"]},
                 outputs=("y", "a", "m"))  # fmt: skip
    feeds, other = _sizes(model, (2, 9, 7), (3, 2, 20))
    found, _ = replaced(model, feeds, other)
    assert exact_attention(Graph(_find(model, feeds)[0]), found, feeds) == found


def test_shapes_that_are_computed(replaced, made):
    """As the first exporter of PyTorch writes them."""
    shapes = [
        ("Shape", ["q"], ["shape"]),
        ("Gather", ["shape", "0"], ["batch"], {"axis": 0}),
        ("Gather", ["shape", "1"], ["length"], {"axis": 0}),
        ("Concat", ["batch", "length", "minus", "size"], ["split4"], {"axis": 0}),
        ("Reshape", ["q", "split4"], ["rq"]),
    ]
    model = made({"rq": shapes}, minus=np.array([-1]), size=np.array([SIZE]))
    replaced(model, *_sizes(model, (1, 9, 7), (3, 2, 20)))


def test_a_softmax_of_an_older_opset(replaced, made):
    for axis, count in ((3, 1), (-1, 1), (2, 0), (None, 0)):
        given = {} if axis is None else {"axis": axis}
        model = made({"w": ("Softmax", ["s"], ["w"], given)}, opset=11)
        first, *others = _sizes(model, (1, 9, 7), (3, 2, 20))
        if count:
            replaced(model, first, *others)
        else:
            assert not _find(model, first)[1]


REFUSED = {
    "weights used elsewhere": ({"y": [NODES["y"], ("Relu", ["w"], ["y2"])]}, ("y", "y2")),
    "weights returned": ({}, ("y", "w")),
    "scores returned": ({}, ("y", "s")),
    "the product returned": ({}, ("y", "p")),
    "the result returned in another layout": ({}, ("y", "t")),
    "NaN replaced elsewhere": ({"w": [*WITHOUT_NAN, ("Relu", ["soft"], ["y2"])]}, ("y", "y2")),
    "NaN replaced by another number": (
        {"w": [*WITHOUT_NAN[:2], ("Where", ["nan", "scale", "soft"], ["w"])]}, ("y",)
    ),
    "NaN kept, numbers replaced": (
        {"w": [*WITHOUT_NAN[:2], ("Where", ["nan", "soft", "zero"], ["w"])]}, ("y",)
    ),
    "softmax over queries": ({"w": ("Softmax", ["s"], ["w"], {"axis": 2})}, ("y",)),
    "softmax over heads": ({"w": ("Softmax", ["s"], ["w"], {"axis": 1})}, ("y",)),
    "softmax along axis 3 of five": (
        {
            "s": ("Mul", ["p", "of five axes"], ["s"]),
            "w": ("Softmax", ["s"], ["w"], {"axis": 3}),
            "t": [
                ("Squeeze", ["z", "0"], ["z4"]),
                ("Transpose", ["z4"], ["t"], {"perm": [0, 2, 1, 3]}),
            ],
        },
        ("y",),
    ),
    "weights on the right": (
        {
            "tv": ("Transpose", ["rv"], ["tv"], {"perm": [0, 2, 3, 1]}),
            "w": [
                ("Softmax", ["s"], ["soft"], {"axis": -1}),
                ("Transpose", ["soft"], ["w"], {"perm": [0, 1, 3, 2]}),
            ],
            "z": ("MatMul", ["tv", "w"], ["z"]),
            "t": ("Transpose", ["z"], ["t"], {"perm": [0, 3, 1, 2]}),
        },
        ("y",),
    ),
    "a negative scale": ({"s": ("Mul", ["p", "negative"], ["s"])}, ("y",)),
    "a scale that float32 cannot have": (
        {"s": [("Mul", ["p", "tiny"], ["p2"]), ("Mul", ["p2", "tiny"], ["s"])]}, ("y",)
    ),
    "a scaled value": (
        {"tv": [("Mul", ["rv", "scale"], ["sv"]),
                ("Transpose", ["sv"], ["tv"], {"perm": [0, 2, 1, 3]})]},
        ("y",),
    ),
    "a product that divides": (
        {"s": ("Div", ["scale", "p"], ["s"])}, ("y",)
    ),
    "queries cut to nine": (
        {"rq": [("Slice", ["q", "0", "9", "1"], ["cut"]), ("Reshape", ["cut", "split"], ["rq"])]},
        ("y",),
    ),
    "results cut to nine": ({"t": [NODES["t"], ("Slice", ["t", "0", "9", "1"], ["t9"])],
                             "y": ("Reshape", ["t9", "joint"], ["y"])}, ("y",)),
    "heads interleaved": (
        {
            "rq": ("Reshape", ["q", "other split"], ["rq"]),
            "tq": ("Transpose", ["rq"], ["tq"], {"perm": [0, 3, 1, 2]}),
        },
        ("y",),
    ),
    "results interleaved": ({"t": ("Transpose", ["z"], ["t"], {"perm": [0, 2, 3, 1]})}, ("y",)),
    "other heads of keys": (
        {"tk": [("Gather", ["rk", "order"], ["ok"], {"axis": 2}),
                ("Transpose", ["ok"], ["tk"], {"perm": [0, 2, 3, 1]})]},
        ("y",),
    ),
    "features reversed": (
        {"rv": [("Gather", ["v", "reversed"], ["b"], {"axis": 2}),
                ("Reshape", ["b", "split"], ["rv"])]},
        ("y",),
    ),
    "batch and length mixed": (
        {"rq": [
            ("Shape", ["q"], ["shape"]),
            ("Transpose", ["q"], ["length first"], {"perm": [1, 0, 2]}),
            ("Reshape", ["length first", "shape"], ["mixed"]),
            ("Reshape", ["mixed", "split"], ["rq"]),
        ]},
        ("y",),
    ),
    "something added to queries": (
        {"rq": [("Add", ["q", "q"], ["qq"]), ("Reshape", ["qq", "split"], ["r"]),
                ("Sqrt", ["r"], ["rq"])]},
        ("y",),
    ),
}  # fmt: skip
for end, begins, ends in (("last", "minus 64", "no end"), ("first", "0", "64")):
    REFUSED[f"the {end} 64 queries"] = (
        {
            "rq": [
                ("Slice", ["q", begins, ends, "1"], ["cut"]),
                ("Reshape", ["cut", "split"], ["rq"]),
            ]
        },
        ("y",),
    )
    REFUSED[f"the {end} 64 results"] = (
        {"y": [("Reshape", ["t", "joint"], ["j"]), ("Slice", ["j", begins, ends, "1"], ["y"])]},
        ("y",),
    )
    REFUSED[f"the {end} 64 keys of some features"] = (
        {
            "rk": [
                ("Slice", ["k", f"{begins}, 0", f"{ends}, 12", "1, 2"], ["cut"]),
                ("Reshape", ["cut", "split"], ["rk"]),
            ]
        },
        ("y",),
    )
for size in (2 * SIZE, SIZE // 2):
    REFUSED[f"values with heads of {size}"] = (
        {
            "rv": [
                ("Gather", ["v", f"features of {size}"], ["g"], {"axis": 2}),
                ("Reshape", ["g", f"split into {size}"], ["rv"]),
            ],
            "y": ("Reshape", ["t", f"joint of {size}"], ["y"]),
        },
        ("y",),
    )
MORE = {
    "minus 64": np.array([-64]),
    "64": np.array([64]),
    "no end": np.array([2**63 - 1]),
    "minus 64, 0": np.array([-64, 0]),
    "0, 0": np.array([0, 0]),
    "no end, 12": np.array([2**63 - 1, 12]),
    "64, 12": np.array([64, 12]),
    "1, 2": np.array([1, 2]),
    **{f"features of {n}": np.arange(n * HEADS) % WIDTH for n in (2, 8)},
    **{f"split into {n}": np.array([0, 0, HEADS, n]) for n in (2, 8)},
    **{f"joint of {n}": np.array([0, 0, n * HEADS]) for n in (2, 8)},
    "other split": np.array([0, 0, SIZE, HEADS]),
    "order": np.array([1, 0, 2]),
    "reversed": np.arange(WIDTH)[::-1].copy(),
}


@pytest.mark.parametrize("form", REFUSED)
def test_forms_that_are_not_attention(made, form):
    """Those that differ for other shapes only are tried with a batch of one, and nine queries."""
    changes, outputs = REFUSED[form]
    model = made(changes, outputs=outputs, **MORE)
    feeds = _sizes(model, (1, 9, 7))[0]
    _run(model, feeds)  # it is valid
    assert _find(model, feeds)[1] == []


def _cut_keys(bound):
    """Nodes that compute a bound, and keys and values cut there."""
    return {
        "rk": [
            *bound,
            ("Slice", ["k", "0", "end", "1"], ["kc"]),
            ("Reshape", ["kc", "split"], ["rk"]),
        ],
        "rv": [("Slice", ["v", "0", "end", "1"], ["vc"]), ("Reshape", ["vc", "split"], ["rv"])],
    }


def test_keys_up_to_the_smaller_of_two_lengths_are_cut(replaced, made):
    """No length that was tried reaches the other one."""
    bound = [
        ("Shape", ["k"], ["shape"]),
        ("Gather", ["shape", "1"], ["length"], {"axis": 0}),
        ("Min", ["length", "64"], ["end"]),
    ]
    model = made(_cut_keys(bound), **MORE)
    (found,), _ = replaced(model, *_sizes(model, (2, 9, 7), (3, 2, 70)))
    assert found.key == "kc"


def test_keys_up_to_a_number_that_data_decide_are_cut(replaced, made):
    bound = [
        ("NonZero", ["kept"], ["places"]),
        ("Shape", ["places"], ["shape"]),
        ("Gather", ["shape", "1"], ["end"], {"axis": 0}),
    ]
    model = made(_cut_keys(bound), {"kept": ["t"]})
    first, other = _sizes(model, (2, 9, 7), (3, 2, 20))
    other["kept"][5:] = 0
    (found,), _ = replaced(model, first, other)
    assert found.key == "kc"


def test_whole_lengths_may_be_cut(replaced, made):
    """As exporters write x[:, :] and x[:, :length]."""
    slices = [
        ("Slice", ["q", "0", "no end", "1"], ["q2"]),
        ("Shape", ["q2"], ["shape"]),
        ("Gather", ["shape", "1"], ["length"], {"axis": 0}),
        ("Slice", ["q2", "0", "length", "1"], ["q3"]),
        ("Reshape", ["q3", "split"], ["rq"]),
    ]
    model = made({"rq": slices}, **MORE)
    (found,), kinds = replaced(model, *_sizes(model, (2, 9, 7), (3, 2, 20)))
    assert found.query == "q"
    assert "Slice" not in kinds


def test_windows_of_which_a_length_must_be_a_multiple_are_refused(made):
    """With one window the file does not show that others would be a batch."""
    windows = np.array([-1, 8, HEADS, SIZE])
    model = made(
        {"r" + name: ("Reshape", ["q", "windows"], ["r" + name]) for name in "qkv"},
        {"k": None, "v": None},
        windows=windows,
    )
    feeds = _feeds(model, n=2, s=8)
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


def test_a_cache_that_is_empty_becomes_longer(replaced, made):
    changes = {
        f"r{name}": [
            ("Concat", ["past", name], [f"all {name}"], {"axis": 1}),
            ("Reshape", [f"all {name}", "split"], [f"r{name}"]),
        ]
        for name in "kv"
    }
    model = made(changes, {"past": ["n", "p", WIDTH]})
    replaced(model, *(_feeds(model, n=2, s=3, t=3, p=past) for past in (0, 5)))


def _with_index(model):
    """Make an input one of whole numbers, which happen to change nothing."""
    index = next(value for value in model.graph.input if value.name == "index")
    index.type.tensor_type.elem_type = TensorProto.INT64
    return model


def test_a_layout_that_data_decide_is_refused(made):
    gathered = [
        ("Reshape", ["q", "split"], ["r"]),
        ("Gather", ["r", "index"], ["rq"], {"axis": 2}),
    ]
    model = _with_index(made({"rq": gathered}, {"index": [HEADS]}))
    feeds = _sizes(model, (2, 9, 7))[0]
    assert feeds["index"].tolist() == [0, 1, 2]
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


def test_queries_that_data_decide_stay(replaced, made):
    gathered = [
        ("Gather", ["q", "index"], ["g"], {"axis": 2}),
        ("Reshape", ["g", "split"], ["rq"]),
    ]
    model = _with_index(made({"rq": gathered}, {"index": [WIDTH]}))
    first, other = _sizes(model, (2, 9, 7), (3, 2, 20))
    other["index"] = other["index"][::-1].copy()
    (found,), kinds = replaced(model, first, other)
    assert found.query == "g"
    assert "Gather" in kinds


def test_a_mask_that_is_scaled_with_the_scores_is_refused(made):
    model = made(
        {"s": [("Add", ["p", "m"], ["a"]), ("Mul", ["a", "scale"], ["s"])]}, {"m": ["s", "t"]}
    )
    assert _find(model, _sizes(model, (2, 9, 7))[0])[1] == []


@pytest.mark.parametrize("shape", [["s", 1], ["n", 1, HEADS, 1, "t"], [1, 1, "s", 1]])
def test_a_mask_that_is_broadcast_otherwise_is_refused(made, shape):
    changes = {"s": ADDED}
    if len(shape) == 5:
        squeezed = [("Squeeze", ["z", "1"], ["z4"])]
        changes |= {"t": [*squeezed, ("Transpose", ["z4"], ["t"], {"perm": [0, 2, 1, 3]})]}
    model = made(changes, {"m": shape})
    feeds = _sizes(model, (1, 9, 7))[0]
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


def test_keys_with_fewer_heads_are_refused(made):
    model = made(
        {"rk": ("Reshape", ["k", "one head"], ["rk"])},
        {"k": ["n", "t", SIZE]},
        **{"one head": np.array([0, 0, 1, SIZE])},
    )
    feeds = _sizes(model, (2, 9, 7))[0]
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


def test_keys_are_not_taken_for_those_of_another_value(made):
    """Queries end at b, for steps are limited; keys end before it, but are a layout of b only."""
    same = [("Identity", [f"b{n}"], [f"b{n + 1}"]) for n in range(17)]
    model = made(
        {
            "rq": [
                ("Gather", ["k", "reversed"], ["b0"], {"axis": 2}),
                *same,
                ("Reshape", ["b17", "split"], ["rq"]),
            ],
            "rk": ("Reshape", ["b0", "split"], ["rk"]),
        },
        {"q": None},
        **MORE,
    )
    feeds = _sizes(model, (2, 9, 9))[0]
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


@pytest.mark.parametrize("batch", [1, 2])
def test_keys_for_all_of_a_batch_are_refused(made, batch):
    """Alike for a batch of one, the operator would refuse to run for others."""
    model = made(inputs={"k": [1, "t", WIDTH], "v": [1, "t", WIDTH]})
    feeds = _sizes(model, (batch, 9, 7))[0]
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


def test_constant_values_are_refused(made):
    rng = np.random.default_rng(0)
    model = made(
        {"rv": [], "tv": []},
        {"v": None, "k": ["n", 7, WIDTH]},
        tv=rng.standard_normal((1, HEADS, 7, SIZE)).astype(np.float32),
    )
    feeds = _sizes(model, (1, 9, 7))[0]
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


def test_attention_in_float64_is_refused(made):
    """Nothing between its ends says so: there is no constant, and no recorded type."""
    changes = {
        "s": [],
        "w": ("Softmax", ["p"], ["w"], {"axis": -1}),
        "y": [("Reshape", ["t", "joint"], ["j"]), ("Relu", ["j"], ["y"])],
    }
    model = made(changes)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    feeds = _sizes(model, (2, 9, 7))[0]
    assert _run(model, feeds)[0].dtype == np.float64
    assert _find(model, feeds)[1] == []


def test_weights_that_a_subgraph_reads_are_refused(made):
    """Two nodes in it that make NaNs zeros are not in the graph."""
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    then = helper.make_graph(
        [
            helper.make_node("IsNaN", ["soft"], ["nan"]),
            helper.make_node("Where", ["nan", "zero", "soft"], ["w"]),
            helper.make_node("MatMul", ["w", "tv"], ["inner"]),
        ],
        "then", [], [out],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["tv"], ["inner"])], "else", [], [out])
    changes = {
        "w": ("Softmax", ["s"], ["soft"], {"axis": -1}),
        "z": ("If", ["yes"], ["z"], {"then_branch": then, "else_branch": other}),
    }
    model = made(changes, yes=np.array(True))
    feeds = _sizes(model, (2, 9, 7))[0]
    _run(model, feeds)
    assert _find(model, feeds)[1] == []


def test_attention_with_an_end_that_a_sparse_operator_took_is_left(made):
    model = made()
    copy, found = _find(model, _sizes(model, (2, 9, 7))[0])
    for name in ("q", "k", "v"):
        (value,) = (value for value in copy.graph.inputs if value.name == name)
        value.name = f"another {name}"
        assert replace_attention(copy, found) == 0
        value.name = name
    assert DOMAIN not in copy.opset_imports
    assert replace_attention(copy, found) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.31},
        {"mask": None},
        {"offsets": (0, 0, 1)},
        {"key": "v"},
        {"length_first": True},
        {"heads": 1},
        {"heads": 4},
    ],
)
def test_attention_that_computes_something_else_is_seen(kernels, made, change):
    """The outputs of a whole model in 8 bits may differ by more."""
    wide = {"v": ["n", "t", WIDTH + 1], "m": ["n", 1, 1, "t"]}
    cut = [("Slice", ["v", "0", "12", "2"], ["vc"]), ("Reshape", ["vc", "split"], ["rv"])]
    model = made({"s": ADDED, "rv": cut}, wide, **{"12": np.array([12]), "2": np.array([2])})
    feeds = _feeds(model, n=7, s=7, t=7)
    copy, found = _find(model, feeds)
    assert exact_attention(Graph(copy), found, feeds) == found != []
    others = [replace(each, **change) for each in found]
    assert exact_attention(Graph(copy), others, feeds) == []


# Whether it is faster decides.


@pytest.mark.parametrize(("is_faster", "factor"), [(False, 1.0), (True, 1.0), (True, 1.01)])
def test_the_times_decide(tmp_path, kernels, monkeypatch, is_faster, factor):
    """If what was found computes what the nodes do."""

    def find(*arguments):
        return [replace(each, scale=factor * each.scale) for each in find_attention(*arguments)]

    def time_models(models, feeds, *, threads, rounds):
        kinds = [{node.op_type for node in model.graph} for model in models]
        share = 0.5 if is_faster else 1.5
        return [
            [("SparseLinear" not in each) + (share if "Attention" in each else 1.0)] * 3
            for each in kinds
        ]

    monkeypatch.setattr(speed, "find_attention", find)
    monkeypatch.setattr(choose, "time_models", time_models)
    monkeypatch.setattr(whole, "time_models", time_models)
    torch.manual_seed(0)
    module = _Encoder(2).eval()
    for weight in module.parameters():
        weight.data *= torch.rand_like(weight) < 0.1
    export_onnx(module, _x(2, 9), tmp_path / "model.onnx")
    found = measure_speed(
        tmp_path / "model.onnx",
        lambda workload: {"input": _x(workload.batch_size, 9).numpy()},
        [Workload(1, 1), Workload(3, 1)],
    )
    kinds = [node.op_type for node in found.model.graph]
    replaced = is_faster and factor == 1
    assert kinds.count("Attention") == (2 if replaced else 0)
    assert kinds.count("Softmax") == (0 if replaced else 2)
    assert "SparseLinear" in kinds
    assert found.difference < 1e-5
