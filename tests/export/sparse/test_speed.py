"""The times alone decide what is replaced. Nothing is timed here."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mfac_compress.export import Workload, measure_speed, write_model
from mfac_compress.export.sparse import choose, speed, whole
from mfac_compress.export.sparse.difference import largest_difference, max_difference
from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.foreign import to_ir
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.nodes import DOMAIN

WORKLOADS = [Workload(1, 1), Workload(8, 1)]


def _ones(*shape):
    return lambda workload: {"x": np.ones((workload.batch_size, *shape), np.float32)}


def _feeds_of(workload):
    return {"x": np.ones((workload.batch_size, 12), np.float32)}


@pytest.fixture
def two_layers(make_model, sparse_weight, tmp_path):
    """A layer that is mostly zeros, one that is not, and a product of activations."""
    nodes = [
        ("MatMul", ["x", "w"], ["a"]),
        ("Relu", ["a"], ["r"]),
        ("MatMul", ["r", "v"], ["b"]),
        ("Add", ["b", "c"], ["y"]),
    ]
    weights = {"w": sparse_weight(12, 8), "v": sparse_weight(8, 4, kept=0.9)}
    model = make_model(nodes, {"x": ["n", 12]}, ["y"], c=np.ones(4, np.float32), **weights)
    write_model(to_ir(model), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def times(monkeypatch, kernels):
    """Set how long a model takes: its sparse operators' names and block sizes -> milliseconds."""

    def say(milliseconds):
        def time_models(models, feeds, *, threads, rounds):
            batch = next(iter(feeds.values())).shape[0]
            return [[milliseconds(_blocks(model), batch)] * 3 for model in models]

        monkeypatch.setattr(choose, "time_models", time_models)
        monkeypatch.setattr(whole, "time_models", time_models)

    return say


def _blocks(model):
    return [node.attributes["block"].value for node in model.graph if node.domain == DOMAIN]


def test_a_layer_that_is_faster_is_replaced(two_layers, times):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    found = measure_speed(two_layers, _feeds_of, WORKLOADS)

    onnx.checker.check_model(ir.to_proto(found.model))
    assert [layer.block is not None for layer in found.layers] == [True, False]
    assert found.layers[0].times[0].ratio == 0.5
    assert "fewer than 30%" in found.layers[1].reason
    assert [(one.workload, one.ratio) for one in found.whole] == [(s, 0.5) for s in WORKLOADS]
    assert found.reason == ""


def test_a_layer_that_is_slower_at_one_batch_size_is_not(two_layers, times):
    times(lambda blocks, batch: 2.0 if blocks and batch == 8 else 1.0 if not blocks else 0.1)
    found = measure_speed(two_layers, _feeds_of, WORKLOADS)
    assert found.model is None
    assert found.layers[0].reason == "not faster"
    assert found.reason == "no layer is faster as a sparse operator"


def test_the_fastest_block_size_is_taken(make_model, tmp_path, times):
    weight = np.kron(np.eye(3, dtype=np.float32), np.ones((8, 8), np.float32))
    model = make_model([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 24]}, ["y"], w=weight)
    write_model(to_ir(model), tmp_path / "model.onnx")
    times(lambda blocks, batch: {1: 0.5, 4: 0.2, 8: 0.1, 16: 0.3}[blocks[0]] if blocks else 1.0)
    found = measure_speed(tmp_path / "model.onnx", _ones(24), WORKLOADS)
    assert found.layers[0].block == 8


def test_blocks_that_would_be_mostly_padding_are_not_tried(two_layers, times):
    tried = set()
    times(lambda blocks, batch: tried.update(blocks) or 1.0)
    measure_speed(two_layers, _feeds_of, WORKLOADS)
    assert 1 in tried
    assert 16 not in tried


def test_a_whole_model_that_is_not_faster_is_not_written(two_layers, times, monkeypatch):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    monkeypatch.setattr(whole, "time_models", lambda models, *_, **__: [[1.0] * 3 for _ in models])
    found = measure_speed(two_layers, _feeds_of, WORKLOADS)
    assert found.model is None
    assert found.layers[0].reason == "faster on its own, but not in the whole model"
    assert "whole model" in found.reason


def test_a_chain_is_timed_as_a_whole(make_model, sparse_weight, tmp_path, times):
    """Each convolution alone is slower, both together are faster: conversions cost time."""
    nodes = [
        ("Conv", ["x", "w"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("Conv", ["a", "v"], ["y"], {"pads": [1, 1, 1, 1]}),
    ]
    weights = {"w": sparse_weight(8, 3, 3, 3), "v": sparse_weight(8, 8, 3, 3, seed=1)}
    model = make_model(nodes, {"x": ["n", 3, 6, 6]}, ["y"], **weights)
    write_model(to_ir(model), tmp_path / "model.onnx")
    times(lambda blocks, batch: [2.0, 3.0, 1.0][len(blocks)])
    found = measure_speed(
        tmp_path / "model.onnx",
        _ones(3, 6, 6),
        WORKLOADS,
    )
    assert [layer.block for layer in found.layers] == [1, 1]
    assert {layer.reason for layer in found.layers} == {"saves layout conversions around it"}


def test_multiplications_are_counted_with_and_without_zeros(two_layers, times):
    found = measure_speed(two_layers, _feeds_of, WORKLOADS[1:], kernels=False)
    weights = [t for t in onnx.load(two_layers).graph.initializer if t.name in "wv"]
    kept = [np.count_nonzero(onnx.numpy_helper.to_array(t)) for t in weights]
    assert [layer.macs for layer in found.layers] == [8 * 12 * 8, 8 * 8 * 4]
    assert [layer.kept_macs for layer in found.layers] == [8 * count for count in kept]


def test_transposed_convolutions_are_counted_by_the_pixels_of_their_input(
    make_model, sparse_weight, tmp_path, times
):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    weight = sparse_weight(4, 3, 2, 2)
    model = make_model(
        [("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2], "group": 2})],
        {"x": ["n", 4, 5, 6]}, ["y"], w=weight,
    )  # fmt: skip
    write_model(to_ir(model), tmp_path / "m.onnx")
    found = measure_speed(
        tmp_path / "m.onnx",
        _ones(4, 5, 6),
        [Workload(7, 1)],
    )
    (layer,) = found.layers
    assert layer.macs == 7 * 5 * 6 * weight.size
    assert layer.kept_macs == 7 * 5 * 6 * np.count_nonzero(weight)
    assert (layer.weight, layer.shape) == ("w", (4, 3, 2, 2))
    assert "transposed" in layer.reason
    assert found.model is None


def test_progress_reports_what_is_timed(two_layers, times):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    steps = []
    measure_speed(two_layers, _feeds_of, WORKLOADS, progress=lambda *step: steps.append(step))
    assert steps == [("w", 0, 1), ("whole model", 1, 1)]


@pytest.mark.parametrize(("shape", "asked"), [(["n", 12], {1, 2}), (None, {1, 2}), ([1, 12], {1})])
def test_shapes_are_found_at_two_batch_sizes_if_the_file_takes_them(
    make_model, sparse_weight, tmp_path, shape, asked
):
    """At 1, a value that is broadcast over the batch looks like any other."""
    model = make_model([("MatMul", ["x", "w"], ["y"])], {"x": [1, 12]}, ["y"],
                       w=sparse_weight(12, 4))  # fmt: skip
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape and [shape[0], 4])
    # Listed first, as old exporters do, and to be ignored: callers do not give it.
    listed = onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [2])
    values = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [1.0])
    places = onnx.helper.make_tensor("places", onnx.TensorProto.INT64, [1], [1])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [2]))
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.extend([listed, x])
    model.graph.output.append(y)
    onnx.save(model, tmp_path / "model.onnx")
    batches = set()

    def feeds_of(workload):
        batches.add(workload.batch_size)
        return _feeds_of(workload)

    measure_speed(tmp_path / "model.onnx", feeds_of, WORKLOADS[:1], kernels=False)
    assert batches == asked


def test_shapes_are_found_at_lengths_other_than_one(make_model, sparse_weight, tmp_path):
    """At 1, a value that is broadcast over an axis looks like any other."""
    model = make_model(
        [("MatMul", ["x", "w"], ["y"])], {"x": [4, "sequence", 12]}, ["y"], w=sparse_weight(12, 4)
    )
    onnx.save(model, tmp_path / "model.onnx")
    asked = []

    def feeds_of(workload):
        asked.append(workload.lengths["sequence"])
        return {"x": np.ones((4, workload.lengths["sequence"], 12), np.float32)}

    for lengths, expected in (([1], [1, 2]), ([1, 7], [1, 7])):
        asked.clear()
        workloads = [Workload(4, 1, {"sequence": length}) for length in lengths]
        measure_speed(tmp_path / "model.onnx", feeds_of, workloads, kernels=False)
        assert sorted(set(asked)) == expected


def test_without_the_library_it_says_so_or_times_nothing(two_layers, monkeypatch):
    def missing():
        raise ValueError("The sparse kernels must be built")

    monkeypatch.setattr(speed, "kernel_library", missing)
    with pytest.raises(ValueError, match="must be built"):
        measure_speed(two_layers, _feeds_of, WORKLOADS)
    found = measure_speed(two_layers, _feeds_of, WORKLOADS, kernels=False)
    assert found.model is None
    assert found.layers[0].sparsity == pytest.approx(0.8, abs=0.1)
    assert found.layers[0].times == ()


def test_a_real_measurement_gives_a_model_or_a_reason(two_layers, kernels):
    found = measure_speed(two_layers, _feeds_of, WORKLOADS)
    assert (found.model is None) == bool(found.reason)


def test_a_model_whose_outputs_differ_is_not_written(two_layers, times, monkeypatch):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    assert measure_speed(two_layers, _feeds_of, WORKLOADS).difference < 1e-6
    monkeypatch.setattr(speed, "largest_difference", lambda *_: 0.5)
    found = measure_speed(two_layers, _feeds_of, WORKLOADS)
    assert found.model is None
    assert found.layers[0].block is None
    assert "differ by 0.5" in found.reason


def test_a_file_that_is_read_otherwise_than_by_onnx_runtime_is_not_replaced(
    two_layers, times, monkeypatch
):
    """The sparse model is compared with the file, not with what was read of it."""
    times(lambda blocks, batch: 1.0 if blocks else 2.0)

    def read(path):
        model = read_model(path)
        value = model.graph.initializers["v"]
        value.const_value = ir.tensor(2 * value.const_value.numpy(), name="v")
        return model

    monkeypatch.setattr(speed, "read_model", read)
    found = measure_speed(two_layers, _feeds_of, WORKLOADS)
    assert found.model is None
    assert "differ by" in found.reason


def test_differences_are_relative_and_see_what_is_not_finite(make_model, tmp_path):
    def scaled(factor):
        nodes = [("Mul", ["x", "f"], ["y"])]
        return to_ir(make_model(nodes, {"x": ["n", 2]}, ["y"], f=factor))

    feeds = {"x": np.array([[10.0, 20.0]], np.float32)}
    more = scaled(np.float32(1.01))
    ir.save(scaled(np.float32(1)), one := tmp_path / "one.onnx")
    assert largest_difference(one, more, feeds) == pytest.approx(0.01, rel=1e-4)
    assert largest_difference(one, scaled(np.float32(np.nan)), feeds) == np.inf


@pytest.mark.parametrize(
    ("dtype", "differences"),
    [(onnx.TensorProto.UINT8, [0, 0.1]), (onnx.TensorProto.INT64, [None, None])],
)
def test_differences_of_quantised_outputs_count_and_those_of_indices_do_not(
    make_model, dtype, differences, tmp_path
):
    def rounded(factor):
        nodes = [("Mul", ["x", "f"], ["m"]), ("Cast", ["m"], ["y"], {"to": dtype})]
        model = make_model(nodes, {"x": ["n", 2]}, ["y"], f=np.float32(factor))
        model.graph.output[0].type.tensor_type.elem_type = dtype
        return to_ir(model)

    ir.save(rounded(1), path := tmp_path / "m.onnx")
    feeds = {"x": np.array([[100.0, 20.0]], np.float32)}
    found = [largest_difference(path, rounded(factor), feeds) for factor in (1, 0.9)]
    assert found == pytest.approx(differences)


def _of_truths(make_model, weight):
    """A model whose only output is not a number."""
    nodes = [("MatMul", ["x", "w"], ["m"]), ("Greater", ["m", "zero"], ["y"])]
    model = make_model(nodes, {"x": ["n", 12]}, ["y"], w=weight, zero=np.float32(0))
    truths = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, ["n", 8])
    model.graph.output[0].CopyFrom(truths)
    return model


def test_a_model_of_which_nothing_can_be_compared_is_allowed(
    make_model, sparse_weight, tmp_path, times
):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    onnx.save(_of_truths(make_model, sparse_weight(12, 8)), tmp_path / "m.onnx")
    found = measure_speed(tmp_path / "m.onnx", _feeds_of, WORKLOADS)
    assert found.difference is None
    assert (found.model is not None, found.reason) == (True, "")


@pytest.mark.parametrize("quantised", [False, True])
def test_what_rounding_explains_follows_from_the_file_alone(make_model, sparse_weight, quantised):
    """Also if the layer that is replaced is not a quantised one."""
    nodes = [("MatMul", ["x", "w"], ["m"])]
    nodes += [
        ("QuantizeLinear", ["m", "s", "z"], ["q"]),
        ("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ] if quantised else [("Relu", ["m"], ["y"])]  # fmt: skip
    model = make_model(
        nodes, {"x": ["n", 12]}, ["y"], w=sparse_weight(12, 8), s=np.float32(0.1), z=np.uint8(100)
    )
    assert max_difference(Graph(to_ir(model))) == (0.05 if quantised else 1e-3)


@pytest.fixture
def four_convolutions(make_model, sparse_weight, tmp_path):
    """Sparse, sparse, dense, sparse."""
    kept = {"w0": 0.2, "w1": 0.2, "w2": 1.0, "w3": 0.2}
    nodes = [
        ("Conv", [before, name], [after], {"pads": [1, 1, 1, 1]})
        for before, name, after in zip("xabc", kept, "abcy", strict=True)
    ]
    weights = {
        name: sparse_weight(8, 8, 3, 3, seed=seed, kept=share)
        for seed, (name, share) in enumerate(kept.items())
    }
    model = make_model(nodes, {"x": ["n", 8, 6, 6]}, ["y"], **weights)
    write_model(to_ir(model), tmp_path / "model.onnx")
    return tmp_path / "model.onnx", _ones(8, 6, 6)


def test_a_chain_that_is_not_faster_is_split_at_its_dense_layers(four_convolutions, times):
    """The four as a whole are not faster; the segments beside the dense layer are."""
    times(lambda blocks, batch: {0: 1.0, 1: 0.5, 2: 0.4, 3: 3.0, 4: 3.0}[len(blocks)])
    found = measure_speed(*four_convolutions, WORKLOADS)
    # The whole model with three is slower as well, with the better segment of two it is faster.
    assert [layer.block is not None for layer in found.layers] == [True, True, False, False]
    assert found.layers[3].reason == "faster on its own, but not in the whole model"


def test_a_chain_may_take_its_depthwise_layers_without_other_dense_ones(
    make_model, sparse_weight, tmp_path, times
):
    nodes = [
        ("Conv", ["x", "w0"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("Conv", ["a", "w1"], ["b"], {"group": 8, "pads": [1, 1, 1, 1]}),
        ("Conv", ["b", "w2"], ["y"]),
    ]
    weights = {
        "w0": sparse_weight(8, 3, 3, 3, kept=1.0),
        "w1": sparse_weight(8, 1, 3, 3, kept=1.0),
        "w2": sparse_weight(8, 8, 1, 1),
    }
    model = make_model(nodes, {"x": ["n", 3, 6, 6]}, ["y"], **weights)
    write_model(to_ir(model), tmp_path / "model.onnx")
    times(lambda blocks, batch: [1.0, 0.9, 0.5, 0.8][len(blocks)])
    found = measure_speed(tmp_path / "model.onnx", _ones(3, 6, 6), WORKLOADS)
    assert [layer.block for layer in found.layers] == [None, 1, 1]


@pytest.mark.parametrize(
    ("alone", "kinds"),
    [(0.4, ["SparseConvDepthwise", "SparseConv"]), (0.6, ["SparseConv"] * 3)],
    ids=["faster", "slower"],
)
def test_one_node_for_a_convolution_and_a_depthwise_one_is_timed(
    make_model, sparse_weight, tmp_path, times, alone, kinds
):
    nodes = [
        ("Conv", ["x", "w0"], ["a"]),
        ("Conv", ["a", "w1"], ["b"], {"group": 8, "pads": [1, 1, 1, 1]}),
        ("Conv", ["b", "w2"], ["y"]),
    ]
    weights = {
        "w0": sparse_weight(8, 3, 1, 1),
        "w1": sparse_weight(8, 1, 3, 3, kept=1.0),
        "w2": sparse_weight(8, 8, 1, 1),
    }
    model = make_model(nodes, {"x": ["n", 3, 6, 6]}, ["y"], **weights)
    write_model(to_ir(model), tmp_path / "model.onnx")
    times(lambda blocks, batch: [1.0, alone, 0.5, 0.3][len(blocks)])
    found = measure_speed(tmp_path / "model.onnx", _ones(3, 6, 6), WORKLOADS)
    assert [node.op_type for node in found.model.graph] == kinds
    assert all(layer.block for layer in found.layers)


def test_a_file_without_layers_has_nothing_to_replace(make_model, tmp_path, kernels):
    onnx.save(make_model([("Relu", ["x"], ["y"])], {"x": ["n", 12]}, ["y"]), tmp_path / "m.onnx")
    found = measure_speed(tmp_path / "m.onnx", _feeds_of, WORKLOADS)
    assert (found.layers, found.model) == ((), None)


def test_a_file_that_onnx_runtime_cannot_load_is_reported_by_name(make_model, tmp_path, kernels):
    model = make_model([("Relu", ["x"], ["y"])], {"x": ["n", 12]}, ["y"])
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"load .*m\.onnx"):
        measure_speed(tmp_path / "m.onnx", _feeds_of, WORKLOADS)


def test_a_model_without_inputs_is_measured(make_model, sparse_weight, tmp_path, kernels):
    model = make_model(
        [("MatMul", ["c", "w"], ["y"])], {}, ["y"], c=np.ones((1, 12), np.float32),
        w=sparse_weight(12, 8),
    )  # fmt: skip
    write_model(to_ir(model), tmp_path / "m.onnx")
    assert len(measure_speed(tmp_path / "m.onnx", lambda _: {}, [Workload(1, 1)]).layers) == 1


def test_the_batch_is_that_of_any_input_but_initializers(make_model, sparse_weight):
    model = make_model(
        [("MatMul", ["x", "w"], ["y"])], {"x": ["n", 12]}, ["y"], w=sparse_weight(12, 8)
    )
    value = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [12, 8])
    model.graph.input.insert(0, value)
    assert speed._open_batch(to_ir(model))
    fixed = onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [1, 8])
    model.graph.input.insert(1, fixed)
    assert speed._open_batch(to_ir(model))
    model.graph.input.pop()
    assert not speed._open_batch(to_ir(model))


def test_a_fixed_input_is_no_residual_where_the_batch_of_another_is_open(
    make_model, sparse_weight, tmp_path, times
):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    model = make_model(
        [("MatMul", ["x", "w"], ["m"]), ("Add", ["m", "r"], ["y"])],
        {"r": [1, 8], "x": ["n", 12]}, ["y"], w=sparse_weight(12, 8),
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")

    def feeds_of(workload):
        return {"r": np.ones((1, 8), np.float32), **_feeds_of(workload)}

    found = measure_speed(tmp_path / "m.onnx", feeds_of, WORKLOADS[:1]).model
    assert [node.op_type for node in found.graph] == ["SparseLinear", "Add"]


def test_an_open_batch_that_can_only_be_one_is_measured(make_model, sparse_weight, tmp_path, times):
    times(lambda blocks, batch: 1.0 if blocks else 2.0)
    model = make_model(
        [("Reshape", ["x", "s"], ["f"]), ("MatMul", ["f", "w"], ["y"])],
        {"x": ["n", 12]}, ["y"], s=np.array([1, 12]), w=sparse_weight(12, 8),
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    assert measure_speed(tmp_path / "m.onnx", _feeds_of, WORKLOADS[:1]).model is not None


def test_a_weight_at_the_left_and_two_constants_are_described(
    make_model, sparse_weight, tmp_path, times
):
    nodes = [
        ("MatMul", ["a", "b"], ["w"]),
        ("MatMul", ["w", "x"], ["h"]),  # computed once, when ONNX Runtime loads the file
        ("MatMul", ["v", "h"], ["y"]),
    ]
    weights = {"a": sparse_weight(6, 3), "b": sparse_weight(3, 12), "v": sparse_weight(5, 6)}
    onnx.save(make_model(nodes, {"x": ["n", 12, 4]}, ["y"], **weights), tmp_path / "model.onnx")
    found = measure_speed(
        tmp_path / "model.onnx",
        _ones(12, 4),
        [Workload(2, 1)],
    )
    two, product, left = found.layers
    assert (two.weight, two.macs) == ("b", None)
    assert product.macs == 2 * 6 * 12 * 4
    assert (left.weight, left.shape) == ("v", (5, 6))
    assert left.macs == 2 * 5 * 6 * 4
    assert left.kept_macs == 2 * 4 * np.count_nonzero(weights["v"])
    assert left.sparsity == 1 - np.count_nonzero(weights["v"]) / 30
