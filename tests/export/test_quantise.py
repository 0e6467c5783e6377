"""Files in 8 bits: what is in them, how near they come, and what they leave behind."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mfac_compress.export import Variant, audit_zeros, export_onnx, open_session
from mfac_compress.export.layer_inputs import layer_products
from mfac_compress.export.quantise import StaticQuantiser
from mfac_compress.export.quantise_dynamic import DynamicQuantiser
from mfac_compress.export.quantised_weights import quantised_weights, signed_weights
from mfac_compress.export.quantiser_parts import weights_in_8_bits


def _images(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, 4, 4)).astype(np.float32)


def _batches():
    return [{"input": _images(8, seed)} for seed in range(4)]


@pytest.fixture(params=["minmax", "entropy", "percentile", "dynamic"])
def quantiser(request, pruned, tmp_path):
    if request.param == "dynamic":
        return DynamicQuantiser(pruned.path, scratch=tmp_path)
    return StaticQuantiser(pruned.path, _batches(), ranges=request.param, scratch=tmp_path)


@pytest.fixture
def static(pruned, tmp_path):
    return StaticQuantiser(pruned.path, _batches(), scratch=tmp_path)


def _outputs(path):
    return open_session(path).run(None, {"input": _images(16, seed=9)})[0]


def _distance(path, other):
    one, two = _outputs(path), _outputs(other)
    return np.linalg.norm(one - two) / np.linalg.norm(two)


def test_outputs_stay_near_and_are_not_the_same(quantiser, pruned, tmp_path):
    quantiser.write(tmp_path / "int8.onnx")
    assert 1e-4 < _distance(tmp_path / "int8.onnx", pruned.path) < 0.1


def test_every_removed_weight_is_still_zero_in_the_file_and_in_onnx_runtime(
    quantiser, pruned, tmp_path
):
    path = tmp_path / "int8.onnx"
    quantiser.write(path)
    assert weights_in_8_bits(path) >= {layer.weight for layer in quantiser.layers}
    audits = audit_zeros([Variant("int8", path)], pruned.masks)["int8"]
    assert [audit.name for audit in audits] == list(pruned.masks)
    assert all(audit.intact for audit in audits)


def test_a_removed_weight_that_came_back_is_found(static, pruned, tmp_path):
    path = tmp_path / "int8.onnx"
    static.write(path)
    model = onnx.load(path)
    (tensor,) = [one for one in model.graph.initializer if one.name == "head.weight_quantized"]
    array = numpy_helper.to_array(tensor).copy()
    array[tuple(np.argwhere(array == 0)[0])] = 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    for audit in audit_zeros([Variant("int8", path)], pruned.masks)["int8"]:
        assert audit.intact == (audit.name != "head.weight")


def test_a_zero_point_that_is_not_zero_loses_the_zeros(static, pruned, tmp_path):
    """Whoever quantises asymmetrically fills every hole."""
    path = tmp_path / "int8.onnx"
    static.write(path)
    model = onnx.load(path)
    (tensor,) = [one for one in model.graph.initializer if one.name == "head.weight_zero_point"]
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(array + np.int8(1), tensor.name))
    onnx.save(model, path)
    (head,) = [
        audit
        for audit in audit_zeros([Variant("int8", path)], pruned.masks)["int8"]
        if audit.name == "head.weight"
    ]
    assert not head.intact
    assert head.onnx_zeros < head.mask_zeros


def test_weights_are_symmetric_signed_bytes_and_activations_unsigned(static, tmp_path):
    static.write(tmp_path / "int8.onnx")
    model = ir.load(tmp_path / "int8.onnx")
    steps = dict(quantised_weights(model))
    for layer in static.layers:
        assert np.abs(steps[layer.weight]).max() <= 127
        in_file = model.graph.initializers[f"{layer.weight}_quantized"]
        assert in_file.dtype == ir.DataType.INT8
    activations = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert activations
    for node in activations:
        assert node.inputs[2].const_value.dtype == ir.DataType.UINT8


@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_are_those_of_outputs_or_of_the_layer(pruned, tmp_path, per_channel):
    quantiser = StaticQuantiser(pruned.path, _batches(), per_channel=per_channel, scratch=tmp_path)
    quantiser.write(tmp_path / "int8.onnx")
    model = ir.load(tmp_path / "int8.onnx")
    size = model.graph.initializers["conv.weight_scale"].const_value.numpy().size
    assert size == (16 if per_channel else 1)


def test_a_layer_left_in_float_keeps_its_weight(quantiser, pruned, tmp_path):
    layer, path = quantiser.layers[-1], tmp_path / "int8.onnx"
    quantiser.write(path, in_float=[layer.node])
    assert weights_in_8_bits(path) == {one.weight for one in quantiser.layers} - {layer.weight}
    in_file = ir.load(path).graph.initializers[layer.weight].const_value.numpy()
    given = pruned.model.head.weight.detach().numpy()
    np.testing.assert_array_equal(in_file, given.T if layer.weight.endswith(".T") else given)


def test_all_layers_in_float_are_the_float_file(quantiser, pruned, tmp_path):
    path = tmp_path / "float.onnx"
    quantiser.write(path, in_float=[layer.node for layer in quantiser.layers])
    assert not weights_in_8_bits(path)


def test_one_layer_alone_in_8_bits(quantiser, pruned, tmp_path):
    path = tmp_path / "one.onnx"
    for layer in quantiser.layers:
        quantiser.write_only(path, layer.node)
        assert weights_in_8_bits(path) == {layer.weight}
        assert 0 < _distance(path, pruned.path) < 0.1


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_nodes_need_no_names(mode, tmp_path):
    """Those of files that others made have none, or those that a name given here would be."""
    path, output = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    torch.manual_seed(0)
    two = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Sigmoid(), nn.Linear(16, 4))
    export_onnx(two, torch.randn(2, 16), path)
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = "Gemm_0" if node.op_type == "Sigmoid" else ""
    onnx.save(model, path)
    batches = [{"input": np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)}]
    if mode == "static":
        quantiser = StaticQuantiser(path, batches, scratch=tmp_path)
    else:
        quantiser = DynamicQuantiser(path, scratch=tmp_path)
    first, second = quantiser.layers
    quantiser.write(output)
    open_session(output)
    assert weights_in_8_bits(output) == {first.weight, second.weight}
    quantiser.write(output, in_float=[first.node])
    assert weights_in_8_bits(output) == {second.weight}
    quantiser.write_only(output, first.node)
    assert weights_in_8_bits(output) == {first.weight}


def test_nothing_is_printed_and_nothing_is_left(pruned, tmp_path, capfd, monkeypatch):
    elsewhere, scratch = tmp_path / "elsewhere", tmp_path / "scratch"
    for folder in (elsewhere, scratch):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.chdir(elsewhere)
    beside = sorted(pruned.path.parent.iterdir())
    for ranges in ("minmax", "entropy"):
        quantiser = StaticQuantiser(pruned.path, _batches(), ranges=ranges, scratch=scratch)
        quantiser.write(scratch / "int8.onnx")
    DynamicQuantiser(pruned.path, scratch=scratch).write(scratch / "int8.onnx")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in scratch.iterdir()] == ["int8.onnx"]
    assert not any(elsewhere.iterdir())
    assert sorted(pruned.path.parent.iterdir()) == beside


def test_the_same_samples_give_the_same_file(pruned, tmp_path):
    for name in ("a", "b"):
        StaticQuantiser(pruned.path, _batches(), scratch=tmp_path).write(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_ranges_are_those_of_all_batches(pruned, tmp_path):
    """An outlier in the last batch counts, though batches are looked at one by one."""
    given = _batches()
    given[-1]["input"][0, 0, 0, 0] = 1000.0
    StaticQuantiser(pruned.path, given, scratch=tmp_path).write(tmp_path / "int8.onnx")
    scale = ir.load(tmp_path / "int8.onnx").graph.initializers["input_scale"].const_value.numpy()
    assert scale == pytest.approx(1000 / 255, rel=0.01)


class _Mixed(nn.Module):
    """A convolution and its sum with the input's, then a transformer's feed-forward branch."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 16, 3, padding=1) for _ in range(2))
        self.up, self.down, self.norm = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)

    def forward(self, x):
        x = (self.convolutions[0](x) + self.convolutions[1](x)).flatten(2).transpose(1, 2)
        x = self.norm(x)
        return x + self.down(nn.functional.gelu(self.up(x)))


def test_matrix_products_make_floats_and_convolutions_bytes(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    export_onnx(_Mixed().eval(), torch.from_numpy(_images(2)), path)
    StaticQuantiser(path, _batches(), scratch=tmp_path).write(tmp_path / "int8.onnx")
    nodes = list(ir.load(tmp_path / "int8.onnx").graph)
    rounded = [n.inputs[0].producer() for n in nodes if n.op_type == "QuantizeLinear"]
    made = [node.op_type for node in rounded if node is not None]
    assert made.count("Conv") == 2
    assert "MatMul" not in made
    sums = [node for node in nodes if node.op_type == "Add"]
    of_bytes = [
        n for n in sums if all(v.producer().op_type == "DequantizeLinear" for v in n.inputs)
    ]
    assert len(of_bytes) == 1  # that of the convolutions, not the residual one nor the biases
    assert made.count("Add") == 1
    products = [node for node in nodes if node.op_type == "MatMul"]
    assert len(products) == 2
    for node in products:
        assert all(value.producer().op_type == "DequantizeLinear" for value in node.inputs)


def test_a_reduced_range_is_that_of_weights_only(pruned, tmp_path):
    scales = []
    for reduce_range in (False, True):
        options = {"reduce_range": reduce_range, "scratch": tmp_path}
        StaticQuantiser(pruned.path, _batches(), **options).write(tmp_path / "int8.onnx")
        scales.append(ir.load(tmp_path / "int8.onnx").graph.initializers["input_scale"])
    assert scales[0].const_value.numpy() == scales[1].const_value.numpy()


def test_a_reduced_range_is_computed_as_written_on_every_processor(tmp_path):
    """In the full range, sums of two products overflow 16 bits where there is no VNNI."""
    torch.manual_seed(0)
    layer, path = nn.Linear(64, 16), tmp_path / "large.onnx"
    with torch.no_grad():
        layer.weight.copy_(layer.weight.sign())
    x = np.random.default_rng(0).uniform(0.9, 1, (8, 64)).astype(np.float32)
    x[:, 0] = -0.01
    export_onnx(layer, torch.from_numpy(x), path)
    quantiser = StaticQuantiser(path, [{"input": x}], reduce_range=True, scratch=tmp_path)
    quantiser.write(tmp_path / "int8.onnx")
    outputs = open_session(tmp_path / "int8.onnx").run(None, {"input": x})[0]
    with torch.no_grad():
        expected = layer(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs, expected, atol=0.02 * np.abs(expected).max())


class _Tied(nn.Module):
    """A weight that an embedding and a linear layer share."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 7)
        self.head = nn.Linear(7, 7)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.words(ids).mean(1))


def test_a_weight_that_others_read_too_is_not_turned_for_them(tmp_path):
    torch.manual_seed(0)
    model, path = _Tied().eval(), tmp_path / "tied.onnx"
    ids = torch.randint(7, (4, 3))
    export_onnx(model, ids, path)
    # In the full range, sums overflow on processors without VNNI.
    quantiser = DynamicQuantiser(path, reduce_range=True, scratch=tmp_path)
    quantiser.write(tmp_path / "int8.onnx")
    given = {"input": ids.numpy()}
    one, two = (open_session(p).run(None, given)[0] for p in (path, tmp_path / "int8.onnx"))
    assert weights_in_8_bits(tmp_path / "int8.onnx")
    np.testing.assert_allclose(two, one, atol=0.05 * np.abs(one).max())


def test_values_that_are_not_finite_are_an_error_that_says_so(pruned, tmp_path):
    given = [{"input": np.full((2, 3, 4, 4), np.nan, np.float32)}]
    with pytest.raises(ValueError, match="quantiser must be able to"):
        StaticQuantiser(pruned.path, given, scratch=tmp_path).write(tmp_path / "int8.onnx")


def test_no_samples_are_an_error(pruned, tmp_path):
    with pytest.raises(ValueError, match="measure the ranges"):
        StaticQuantiser(pruned.path, [], scratch=tmp_path)


def test_given_steps_take_the_places_of_the_nearest_and_nothing_else_changes(
    quantiser, pruned, tmp_path
):
    one, two = tmp_path / "nearest.onnx", tmp_path / "given.onnx"
    quantiser.write(one)
    nearest = signed_weights(one)
    name = quantiser.layers[-1].weight
    steps = {name: np.where(nearest[name].steps == 0, 0, 5).astype(np.int8)}
    quantiser.write(two, steps=steps)
    before, after = (
        {key: value.const_value.numpy() for key, value in ir.load(path).graph.initializers.items()}
        for path in (one, two)
    )
    np.testing.assert_array_equal(after.pop(f"{name}_quantized"), steps[name])
    before.pop(f"{name}_quantized")
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array)


def test_given_steps_of_a_layer_that_stays_in_float_do_not_count(quantiser, tmp_path):
    layer, path = quantiser.layers[-1], tmp_path / "int8.onnx"
    quantiser.write(path)
    steps = {layer.weight: np.zeros_like(signed_weights(path)[layer.weight].steps)}
    contents = []
    for given in ({}, steps):
        quantiser.write(path, in_float=[layer.node], steps=given)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_steps_times_scales_are_the_weights(pruned, tmp_path, per_channel, reduce_range, mode):
    options = {"per_channel": per_channel, "reduce_range": reduce_range, "scratch": tmp_path}
    if mode == "dynamic":
        quantiser = DynamicQuantiser(pruned.path, **options)
    else:
        quantiser = StaticQuantiser(pruned.path, _batches(), **options)
    quantiser.write(tmp_path / "int8.onnx")
    weights = signed_weights(tmp_path / "int8.onnx")
    most = max(np.abs(weight.steps.astype(int)).max() for weight in weights.values())
    assert most == (64 if reduce_range else 127)
    products = dict(layer_products(quantiser.model))
    assert {layer.weight for layer in quantiser.layers} == weights.keys()
    for name, weight in weights.items():
        W, steps = (products[name].matrices(x) for x in (products[name].values, weight.steps))
        scale = weight.scale if per_channel else np.repeat(weight.scale, W.shape[0] * W.shape[1])
        scale = scale.reshape(*W.shape[:2], 1)
        assert (np.abs(steps * scale - W) <= 0.501 * scale).all()
