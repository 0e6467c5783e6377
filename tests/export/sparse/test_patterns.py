"""Each pattern becomes one sparse operator that computes what ONNX Runtime computes."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mfac_compress.export import export_onnx
from mfac_compress.export.sparse.find import fuse

X = {"x": ["n", 12]}
IMAGES = {"x": ["n", 8, 9, 7]}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()])
def test_gemm_with_its_factors(rewritten, make_model, sparse_weight, transposed, bias):
    weight = sparse_weight(*((6, 12) if transposed else (12, 6)))
    constants = {"w": weight} | ({} if bias is None else {"b": np.full(bias, 0.5, np.float32)})
    attributes = {"transB": transposed, "alpha": 0.5, "beta": 2.0}
    node = ("Gemm", ["x", *constants], ["y"], attributes)
    assert rewritten(make_model([node], X, ["y"], **constants)).kinds == ["SparseLinear"]


@pytest.mark.parametrize("leading", [["n"], ["n", 3], ["n", 2, 3]])
@pytest.mark.parametrize("swapped", [False, True])
def test_matmul_with_bias_and_any_leading_axes(
    rewritten, make_model, sparse_weight, leading, swapped
):
    nodes = [("MatMul", ["x", "w"], ["m"])]
    nodes.append(("Add", ["b", "m"] if swapped else ["m", "b"], ["y"]))
    constants = {"w": sparse_weight(12, 5), "b": np.arange(5, dtype=np.float32)}
    model = make_model(nodes, {"x": [*leading, 12]}, ["y"], **constants)
    assert rewritten(model).kinds == ["SparseLinear"]


def test_a_transpose_or_constant_node_before_the_weight_is_looked_through(
    rewritten, make_model, sparse_weight
):
    nodes = [("Transpose", ["w"], ["t"]), ("MatMul", ["x", "t"], ["y"])]
    assert rewritten(make_model(nodes, X, ["y"], w=sparse_weight(5, 12))).kinds == ["SparseLinear"]


@pytest.mark.parametrize("block", [1, 4, 8, 16])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((6, 8, 1, 1), {}),
        ((6, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((6, 8, 3, 3), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ((6, 8, 3, 2), {"dilations": [2, 3]}),
        ((8, 2, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
        ((8, 1, 5, 5), {"group": 8, "pads": [2, 2, 2, 2]}),
        ((6, 8, 4, 3), {"auto_pad": "SAME_UPPER"}),
        ((6, 8, 4, 3), {"auto_pad": "SAME_LOWER"}),
        ((6, 8, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    ],
)
def test_convolutions(rewritten, make_model, sparse_weight, shape, attributes, block):
    constants = {"w": sparse_weight(*shape), "b": np.arange(shape[0], dtype=np.float32)}
    model = make_model([("Conv", ["x", "w", "b"], ["y"], attributes)], IMAGES, ["y"], **constants)
    assert rewritten(model, block=block).kinds == ["SparseConv"]


def test_batch_norm_after_a_convolution(rewritten, make_model, sparse_weight):
    rng = np.random.default_rng(0)
    norm = {name: rng.uniform(0.5, 2, 6).astype(np.float32) for name in ("s", "b", "m", "v")}
    nodes = [
        ("Conv", ["x", "w"], ["c"]),
        ("BatchNormalization", ["c", *norm], ["n"], {"epsilon": 1e-2}),
        ("Relu", ["n"], ["y"]),
    ]
    model = make_model(nodes, IMAGES, ["y"], w=sparse_weight(6, 8, 3, 3), **norm)
    assert rewritten(model).kinds == ["SparseConv"]


@pytest.mark.parametrize("clip", [("low", "high"), ("low",), ("", "high")])
def test_clip_with_bounds_or_without(rewritten, make_model, sparse_weight, clip):
    nodes = [("MatMul", ["x", "w"], ["m"]), ("Clip", ["m", *clip], ["y"])]
    bounds = {"low": np.float32(0), "high": np.float32(0.7)}
    constants = {name: bounds[name] for name in clip if name}
    found = rewritten(make_model(nodes, X, ["y"], w=sparse_weight(12, 5), **constants))
    assert found.kinds == ["SparseLinear"]
    assert found.attributes[0]["activation"] == b"clip"


@pytest.mark.parametrize(("low", "high"), [(2, 1), (np.nan, 1), (0, np.nan)])
def test_a_clip_without_a_range_stays(find, make_model, sparse_weight, low, high):
    """The kernels refuse such bounds, with the whole file."""
    nodes = [("MatMul", ["x", "w"], ["m"]), ("Clip", ["m", "low", "high"], ["y"])]
    bounds = {"low": np.float32(low), "high": np.float32(high)}
    graph, layers, shapes = find(make_model(nodes, X, ["y"], w=sparse_weight(12, 5), **bounds))
    assert [each.epilogue.kind for each in fuse(graph, layers, shapes)] == ["none"]


def test_clip_with_bounds_as_attributes(find, make_model, sparse_weight):
    """Before opset 11; such files are still read, although no longer written."""
    from mfac_compress.export.sparse.patterns.activation import add_activation

    nodes = [("MatMul", ["x", "w"], ["m"]), ("Clip", ["m"], ["y"], {"min": 0.0, "max": 6.0})]
    graph, layers, _ = find(make_model(nodes, X, ["y"], opset=10, w=sparse_weight(12, 5)))
    assert add_activation(graph, layers[0].found).epilogue.clip == (0.0, 6.0)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("opset", [18, 20])
def test_gelu_as_torch_exports_it(rewritten, tmp_path, approximate, opset):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.GELU(approximate))
    export_onnx(net, torch.randn(2, 3, 12), tmp_path / "net.onnx", opset=opset)
    found = rewritten(onnx.load(tmp_path / "net.onnx"))
    assert found.kinds == ["SparseLinear"]
    expected = "gelu" if approximate == "none" else "gelu_tanh"
    assert found.attributes[0]["activation"].decode() == expected


def test_arithmetic_other_than_gelu_stays(rewritten, make_model, sparse_weight):
    """Like a Gelu in every node, with 1.5 in place of √2."""
    nodes = [
        ("MatMul", ["x", "w"], ["z"]),
        ("Div", ["z", "root"], ["d"]),
        ("Erf", ["d"], ["e"]),
        ("Add", ["e", "one"], ["a"]),
        ("Mul", ["z", "a"], ["p"]),
        ("Mul", ["p", "half"], ["y"]),
    ]
    numbers = {"root": np.float32(1.5), "one": np.float32(1), "half": np.float32(0.5)}
    found = rewritten(make_model(nodes, X, ["y"], w=sparse_weight(12, 5), **numbers))
    assert found.kinds == ["SparseLinear", "Div", "Erf", "Add", "Mul", "Mul"]


def test_a_residual_and_the_activation_after_it(rewritten, make_model, sparse_weight):
    nodes = [
        ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("Add", ["x", "c"], ["a"]),
        ("Relu", ["a"], ["y"]),
    ]
    found = rewritten(make_model(nodes, IMAGES, ["y"], w=sparse_weight(8, 8, 3, 3)))
    assert found.kinds == ["SparseConv"]


def test_in_a_sum_of_two_layers_one_is_the_others_residual(rewritten, make_model, sparse_weight):
    nodes = [
        ("MatMul", ["x", "w"], ["a"]),
        ("MatMul", ["x", "v"], ["b"]),
        ("Add", ["a", "b"], ["s"]),
        ("Relu", ["s"], ["y"]),
    ]
    constants = {"w": sparse_weight(12, 5), "v": sparse_weight(12, 5, seed=1)}
    assert rewritten(make_model(nodes, X, ["y"], **constants)).kinds == ["SparseLinear"] * 2


def test_a_sum_that_broadcasts_stays(rewritten, make_model, sparse_weight):
    """At a batch of one the shapes would agree."""
    nodes = [
        ("MatMul", ["x", "w"], ["m"]),
        ("ReduceMean", ["m"], ["r"], {"keepdims": 1, "axes": [0]}),
        ("MatMul", ["x", "v"], ["k"]),
        ("Add", ["k", "r"], ["y"]),
    ]
    constants = {"w": sparse_weight(12, 5), "v": sparse_weight(12, 5, seed=1)}
    found = rewritten(make_model(nodes, X, ["y"], opset=17, **constants))
    assert "Add" in found.kinds


def test_a_layer_that_is_broadcast_in_a_sum_stays(rewritten, make_model, sparse_weight):
    """The other term has the shape of the sum, and the layer's own result has not."""
    nodes = [
        ("ReduceMean", ["x"], ["r"], {"keepdims": 1, "axes": [0]}),
        ("MatMul", ["r", "w"], ["m"]),
        ("Relu", ["x"], ["k"]),
        ("Add", ["k", "m"], ["y"]),
    ]
    found = rewritten(make_model(nodes, X, ["y"], opset=17, w=sparse_weight(12, 12)))
    assert "Add" in found.kinds


def test_what_others_read_is_kept(rewritten, make_model, sparse_weight):
    """The sum before the activation is an output, and so is the product before the bias."""
    nodes = [
        ("MatMul", ["x", "w"], ["m"]),
        ("Add", ["m", "b"], ["a"]),
        ("Relu", ["a"], ["r"]),
        ("Neg", ["a"], ["y"]),
    ]
    constants = {"w": sparse_weight(12, 5), "b": np.ones(5, np.float32)}
    found = rewritten(make_model(nodes, X, ["m", "r", "y"], **constants))
    assert found.kinds == ["SparseLinear", "Add", "Relu", "Neg"]


def test_a_weight_that_others_read_stays_for_them(rewritten, make_model, sparse_weight):
    nodes = [
        ("MatMul", ["x", "w"], ["h"]),
        ("MatMul", ["h", "w"], ["i"]),
        ("Add", ["i", "w"], ["y"]),
    ]
    model = make_model(nodes, {"x": [12, 12]}, ["y"], w=sparse_weight(12, 12))
    found = rewritten(model)
    assert found.kinds == ["SparseLinear", "SparseLinear", "Add"]
    names = {tensor.name for tensor in found.model.graph.initializer}
    assert "w" in names
    assert len([name for name in names if name.endswith("values")]) == 1  # packed once


def test_names_in_use_are_not_used_twice(rewritten, make_model, sparse_weight):
    nodes = [("MatMul", ["x", "w"], ["m"]), ("Add", ["m", "MatMul_0.values"], ["y"])]
    constants = {"w": sparse_weight(12, 5), "MatMul_0.values": np.ones((1, 1, 5), np.float32)}
    found = rewritten(make_model(nodes, X, ["y"], **constants))
    names = [tensor.name for tensor in found.model.graph.initializer]
    assert len(names) == len(set(names))
