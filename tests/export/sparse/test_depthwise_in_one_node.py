"""A convolution and the depthwise one that reads it, computed in one node."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mfac_compress.export.sparse.compose import extract_subgraph, rewrite
from mfac_compress.export.sparse.find import fuse
from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.layout import Placement, with_depthwise
from mfac_compress.export.sparse.read_back import packed_weights

IMAGES = {"x": ["n", 6, 9, 11]}
PADDED = {"pads": [1, 1, 1, 1]}
DEPTHWISE = {"group": 8, "strides": [2, 2], **PADDED}


def _model(
    make_model, sparse_weight, *, wide=DEPTHWISE, first=(8, 6, 1, 1), ending=(), outputs="y"
):
    """Convolution, clip, depthwise convolution, clip, convolution."""
    nodes = [
        ("Conv", ["x", "w0", "b"], ["a"], {"group": 6 // first[1]}),
        ("Clip", ["a", "low", "high"], ["c"]),
        ("Conv", ["c", "w1", "b"], ["d"], wide),
        ("Relu", ["d"], ["e"]),
        ("Conv", ["e", "w2"], ["y"]),
        *ending,
    ]
    weights = {
        "w0": sparse_weight(*first),
        "w1": sparse_weight(8, 1, 3, 3, seed=1, kept=0.9),
        "w2": sparse_weight(5, 8, 1, 1, seed=2),
    }
    constants = {"b": np.arange(8), "low": np.array(-1), "high": np.array(1)}
    floats = {name: array.astype(np.float32) for name, array in constants.items()}
    return make_model(nodes, IMAGES, list(outputs), **weights, **floats)


def _plan(find, model, planes=False):
    graph, layers, shapes = find(model)
    plan = {each: Placement(Block(4), planes) for each in fuse(graph, layers, shapes)}
    return graph, shapes, plan


@pytest.fixture
def joined(find, make_model, sparse_weight):
    graph, shapes, plan = _plan(find, _model(make_model, sparse_weight))
    ((first, depthwise),) = with_depthwise(plan)
    plan[first] = plan[first]._replace(depthwise=depthwise)
    return graph, shapes, plan


def _run(model, feeds, library=None):
    options = onnxruntime.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, feeds)


def test_it_computes_what_the_nodes_did(joined, kernels):
    graph, _, plan = joined
    model = rewrite(graph, plan)
    onnx.checker.check_model(ir.to_proto(model))
    assert [node.op_type for node in model.graph] == ["SparseConvDepthwise", "SparseConv"]
    x = np.random.default_rng(0).standard_normal((3, 6, 9, 11)).astype(np.float32)
    (expected,), (y,) = _run(graph.model, {"x": x}), _run(model, {"x": x}, kernels)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_both_can_be_extracted_to_be_timed(joined, kernels):
    graph, shapes, plan = joined
    two = [each for each in plan if each.x.name in ("x", "c")]
    apart = {each: Placement(Block(4), planes=False) for each in two}
    models = [extract_subgraph(graph, two, each, shapes) for each in ({}, apart, plan)]
    assert [len(model.graph) for model in models[1:]] == [2, 1]
    x = np.random.default_rng(0).standard_normal(shapes["x"]).astype(np.float32)
    expected, *found = (_run(model, {"x": x}, kernels)[0] for model in models)
    for y in found:
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_both_weights_are_read_back(joined):
    graph, _, plan = joined
    found = dict(packed_weights(rewrite(graph, plan), graph.model))
    assert list(found) == ["w0", "w1", "w2"]
    for name, weight in found.items():
        stored = graph.model.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(weight, stored)


@pytest.mark.parametrize(
    "changed",
    [
        {"wide": {**DEPTHWISE, "strides": [1, 2]}},
        {"wide": {**DEPTHWISE, "dilations": [2, 2]}},
        {"wide": {**DEPTHWISE, "pads": [3, 0, 0, 0]}},
        {"first": (8, 3, 1, 1)},
        {"ending": [("Relu", ["c"], ["z"])], "outputs": "yz"},
        {"outputs": "yc"},
    ],
    ids=["strides", "dilations", "pads", "groups", "another reader", "an output"],
)
def test_others_stay_two(find, make_model, sparse_weight, changed):
    *_, plan = _plan(find, _model(make_model, sparse_weight, **changed))
    assert len(plan) == 3
    assert not list(with_depthwise(plan))


def test_one_of_a_single_channel_is_not_the_first_of_one_pair_and_the_second_of_another(
    find, make_model, sparse_weight
):
    around = {"pads": [1, 1, 1, 1]}
    nodes = [("Conv", [a, w], [b], around) for a, w, b in ("xuc", "cve", "ewy")]
    weights = {name: sparse_weight(1, 1, 3, 3, kept=0.9) for name in "uvw"}
    model = make_model(nodes, {"x": ["n", 1, 9, 11]}, ["y"], **weights)
    *_, plan = _plan(find, model)
    assert len(plan) == 3
    assert not list(with_depthwise(plan))


def test_images_in_planes_stay_two(find, make_model, sparse_weight):
    *_, plan = _plan(find, _model(make_model, sparse_weight), planes=True)
    assert not list(with_depthwise(plan))
