"""Between sparse convolutions values stay in the kernels' own layout, and nowhere else."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mfac_compress.export.sparse import planes_shape
from mfac_compress.export.sparse.find import fuse
from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.layout import KINDS, Placement, assign_layouts, chains, in_planes
from mfac_compress.export.sparse.nodes import recorded_planes_shape

FLOAT = TensorProto.FLOAT
IMAGES = {"x": ["n", 8, 9, 7]}
PADDED = {"pads": [1, 1, 1, 1]}


def _residual_net(make_model, sparse_weight, ending=(), outputs=("r2",)):
    """Two convolutions, the sum with the first one's output, and the nodes after it."""
    nodes = [
        ("Conv", ["x", "w0"], ["c0"], PADDED),
        ("Relu", ["c0"], ["r0"]),
        ("Conv", ["r0", "w1"], ["c1"], PADDED),
        ("Relu", ["c1"], ["r1"]),
        ("Conv", ["r1", "w2"], ["c2"], PADDED),
        ("Add", ["c2", "r0"], ["a2"]),
        ("Relu", ["a2"], ["r2"]),
        *ending,
    ]
    weights = {f"w{n}": sparse_weight(8, 8, 3, 3, seed=n) for n in range(3)}
    return make_model(nodes, IMAGES, outputs, **weights)


def test_a_chain_with_a_residual_changes_layout_at_its_ends_only(
    rewritten, make_model, sparse_weight
):
    found = rewritten(_residual_net(make_model, sparse_weight))
    layouts = [(a["input_layout"], a["output_layout"]) for a in found.attributes]
    assert layouts == [(b"nchw", b"planes"), (b"planes", b"planes"), (b"planes", b"nchw")]
    assert found.attributes[-1]["residual_layout"] == b"planes"


def test_values_in_planes_have_their_own_shapes(rewritten, make_model, sparse_weight):
    model = onnx.shape_inference.infer_shapes(_residual_net(make_model, sparse_weight))
    found = rewritten(model)
    recorded = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in found.model.graph.value_info
    }
    assert recorded["r0"] == recorded["r1"] == ["n*8+1", 11, 8]


@pytest.mark.parametrize("recorded", [["n", 8, -1, -1], [-1, 8, 0, 0]])
def test_a_recorded_size_that_no_image_has_counts_as_unknown(
    rewritten, make_model, sparse_weight, recorded
):
    """ONNX Runtime runs such files."""
    model = _residual_net(make_model, sparse_weight)
    for name in ("r0", "r1"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, recorded))
    found = rewritten(model)
    assert not any(v.type.tensor_type.HasField("shape") for v in found.model.graph.value_info)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((2, 3, 5, 7), planes_shape(2, 3, 5, 7)),
        ((2, 3, 16), planes_shape(2, 3, 1, 16)),
        (("n", 3, 1, 1), ("n*3+6", 3, 2)),
        ((None, 3, 5, 7), (None, 7, 8)),
        ((-1, 3, 5, 7), (None, 7, 8)),
        ((2, 3, "h", 7), None),
        ((2, 3, 5, -1), None),
        ((2, 3, 5, 0), None),
        ((2, 3), None),
    ],
)
def test_shapes_in_planes_are_as_known_as_those_of_the_images(given, expected):
    found = recorded_planes_shape(ir.Shape(given))
    assert found == (None if expected is None else ir.Shape(expected))


def test_what_another_operator_reads_or_the_graph_returns_is_not_in_planes(
    rewritten, make_model, sparse_weight
):
    model = _residual_net(make_model, sparse_weight, [("Neg", ["r0"], ["n"])], ["r2", "n", "r1"])
    found = rewritten(model)
    assert {a["output_layout"] for a in found.attributes if "output_layout" in a} == {b"nchw"}


def test_the_layers_that_stay_get_images_in_their_own_layout(rewritten, make_model, sparse_weight):
    found = rewritten(_residual_net(make_model, sparse_weight), only=lambda o: o.y.name != "r1")
    assert found.kinds == ["SparseConv", "Conv", "Relu", "SparseConv"]


def test_chains_are_operators_that_pass_images(find, make_model, sparse_weight):
    model = _residual_net(make_model, sparse_weight, [("Neg", ["r2"], ["n"])], ["n"])
    graph, layers, shapes = find(model)
    operators = fuse(graph, layers, shapes)
    assert chains(operators) == [operators]
    assert in_planes(dict.fromkeys(operators, Placement(Block(1)))) == {"r0", "r1"}
    assert in_planes(dict.fromkeys(operators[:1], Placement(Block(1)))) == frozenset()


def test_single_pixels_may_be_read_from_either_layout(find, make_model, sparse_weight):
    """a -> 3x3 -> b -> 1x1 -> y: only the larger window gains from the border."""
    nodes = [
        ("Conv", ["x", "w0"], ["a"]),
        ("Conv", ["a", "w1"], ["b"], PADDED),
        ("Conv", ["b", "w0"], ["y"]),
    ]
    weights = {"w0": sparse_weight(8, 8, 1, 1), "w1": sparse_weight(8, 8, 3, 3)}
    graph, layers, shapes = find(make_model(nodes, IMAGES, ["y"], **weights))
    blocks = dict.fromkeys(fuse(graph, layers, shapes), 4)
    kinds = {kind: in_planes(assign_layouts(blocks, kind)) for kind in KINDS}
    assert kinds == {"all": {"a", "b"}, "windowed": {"a"}, "none": frozenset()}


def test_the_shortcut_of_thin_resnets_is_a_convolution_within_a_chain(
    rewritten, make_model, sparse_weight
):
    """x[:, :, ::2, ::2] with channels of zeros before and after."""
    every = {"starts": [0], "ends": [2**63 - 1], "h": [2], "w": [3], "step": [2]}
    nodes = [
        ("Conv", ["x", "w0"], ["r0"], PADDED),
        ("Slice", ["r0", "starts", "ends", "h", "step"], ["s0"]),
        ("Slice", ["s0", "starts", "ends", "w", "step"], ["s1"]),
        ("Pad", ["s1", "pads"], ["p"]),
        ("Conv", ["r0", "w1"], ["c1"], {"strides": [2, 2], **PADDED}),
        ("Add", ["c1", "p"], ["a"]),
        ("Relu", ["a"], ["y"]),
    ]
    model = make_model(
        nodes, IMAGES, ["y"], w0=sparse_weight(8, 8, 3, 3), w1=sparse_weight(16, 8, 3, 3),
        pads=np.array([0, 4, 0, 0, 0, 4, 0, 0]),
        **{name: np.array(value) for name, value in every.items()},
    )  # fmt: skip
    found = rewritten(model)
    assert found.kinds == ["SparseConv"] * 3
    assert found.attributes[1]["input_layout"] == found.attributes[1]["output_layout"] == b"planes"


def test_other_slices_and_pads_stay(rewritten, make_model, sparse_weight):
    numbers = {"one": [1], "end": [2**63 - 1], "h": [2], "step": [2], "zero": [0]}
    pads = {"edge": [0, 0, 1, 0, 0, 4, 0, 0], "channels": [0, 4, 0, 0, 0, 4, 0, 0]}
    for start, pad in (("one", "channels"), ("zero", "edge")):
        nodes = [
            ("Conv", ["x", "w0"], ["r0"], PADDED),
            ("Slice", ["r0", start, "end", "h", "step"], ["s0"]),
            ("Pad", ["s0", pad], ["y"]),
        ]
        constants = {name: np.array(value) for name, value in (numbers | pads).items()}
        model = make_model(nodes, IMAGES, ["y"], w0=sparse_weight(8, 8, 3, 3), **constants)
        assert rewritten(model).kinds == ["SparseConv", "Slice", "Pad"]


def test_nodes_without_inputs_are_skipped(rewritten, make_model, sparse_weight):
    value = onnx.numpy_helper.from_array(np.float32([1]), "v")
    nodes = [
        ("Constant", [], ["c"], {"value": value}),
        ("Conv", ["x", "w"], ["y"], PADDED),
        ("Mul", ["y", "c"], ["z"]),
    ]
    model = make_model(nodes, IMAGES, ["z"], w=sparse_weight(8, 8, 3, 3))
    assert rewritten(model).kinds == ["Constant", "SparseConv", "Mul"]


def test_depthwise_convolutions_read_images_as_they_are(find, make_model, sparse_weight):
    """a -> depthwise -> b -> 3x3 -> c -> 3x3 -> y."""
    nodes = [
        ("Conv", ["x", "w0"], ["a"]),
        ("Conv", ["a", "w1"], ["b"], {"group": 8, **PADDED}),
        ("Conv", ["b", "w2"], ["c"], PADDED),
        ("Conv", ["c", "w2"], ["y"], PADDED),
    ]
    shapes = ((8, 8, 1, 1), (8, 1, 3, 3), (8, 8, 3, 3))
    weights = {f"w{n}": sparse_weight(*shape) for n, shape in enumerate(shapes)}
    graph, layers, shapes = find(make_model(nodes, IMAGES, ["y"], **weights))
    operators = fuse(graph, layers, shapes)
    assert [operator.is_depthwise for operator in operators] == [False, True, False, False]
    for kind in ("all", "windowed"):
        assert in_planes(assign_layouts(dict.fromkeys(operators, Block(1)), kind)) == {"c"}


def test_depthwise_convolutions_between_sparse_ones_are_rewritten(rewritten, make_model):
    """Those with kernels of their own, in nchw, and others."""
    rng = np.random.default_rng(0)
    nodes = [
        ("Conv", ["x", "w0", "b"], ["a"], {"group": 8, **PADDED}),
        ("Clip", ["a", "low", "high"], ["c"]),
        ("Conv", ["c", "w1"], ["d"], {"group": 8, "strides": [2, 2], "pads": [2] * 4}),
        ("Conv", ["d", "w0"], ["y"], {"group": 8, "dilations": [2, 2], "pads": [2] * 4}),
    ]
    weights = {"w0": rng.standard_normal((8, 1, 3, 3)), "w1": rng.standard_normal((8, 1, 5, 5))}
    constants = {name: 0.2 * array for name, array in weights.items()}
    constants |= {"b": rng.standard_normal(8), "low": np.array(0.0), "high": np.array(6.0)}
    floats = {name: array.astype(np.float32) for name, array in constants.items()}
    found = rewritten(make_model(nodes, IMAGES, ["y"], **floats))
    assert found.kinds == ["SparseConv"] * 3
