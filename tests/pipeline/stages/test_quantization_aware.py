"""Quantization-aware epochs in a run: what they round by is what ships."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from mfac_compress.export import open_session
from mfac_compress.export.quantised_weights import signed_weights
from mfac_compress.export.quantiser_parts import weights_in_8_bits
from mfac_compress.mfac.fake_quantisation import weight_scale
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.stages import quantize, recover
from mfac_compress.pipeline.stages.quantization_aware import FileIn8Bits, QuantizationAware
from mfac_compress.pipeline.stages.training import Training

STATIC = {"mode": "static", "samples": 64}
RESULTS = ("model.int8.onnx", "model.onnx", "model.safetensors", "activation_ranges.safetensors")


@pytest.fixture
def aware(project):
    """A project whose last two epochs of three round, with batch norms of either sign."""
    return _aware(project)


def _aware(project):
    tensors = load_tensors(project.model)
    tensors["1.weight"][::2] *= -1
    save_file(tensors, project.model)
    project.recipe["recover"] = {"epochs": 3, "quantization_aware": 2, "lr": 0.05}
    project.recipe["quantize"] = STATIC
    project.recipe["validate"]["gates"] = {"max_metric_drop": 1.0}
    return project


@pytest.fixture(scope="module")
def finished(module_project):
    """One that has run, with the rounding that it trained with."""
    project, start = _aware(module_project), QuantizationAware.start

    def note(self, *arguments):
        divergence = start(self, *arguments)
        project.rounding = self.rounding
        return divergence

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuantizationAware, "start", note)
        result = project.run("-q")
    assert result.exit_code == 0, result.output
    return project


def _layers(path):
    """By weight: scale and zero point of the input, as the file's nodes have them."""
    model, found = ir.load(path), []
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            source, weight = (value.producer() for value in node.inputs[:2])
            name = weight.inputs[0].name.removesuffix("_quantized")
            scale, zero_point = (one.const_value.numpy() for one in source.inputs[1:])
            assert zero_point.dtype == np.uint8
            found.append((name.removesuffix(".T"), scale.item(), zero_point.item()))
    return found


def _trained_with(rounding):
    return [(one.weight, one.scale, one.zero_point) for one in rounding.layers]


def test_the_scales_that_ship_are_those_of_the_training(finished):
    path = finished.output / "model.int8.onnx"
    assert _layers(path) == _trained_with(finished.rounding)
    assert [one.weight for one in finished.rounding.layers] == ["0.weight", "3.weight"]
    ranges = load_file(finished.output / "activation_ranges.safetensors")
    assert {n: tuple(r) for n, r in ranges.items()} == {
        name: tuple(both.numpy()) for name, both in finished.rounding.ranges.items()
    }
    tensors, written = load_tensors(finished.output / "model.safetensors"), signed_weights(path)
    for layer in finished.rounding.layers:
        weight = tensors[layer.weight]
        scale = weight_scale(weight, layer, 0, finished.rounding.levels)
        steps, found = (weight / scale[:, None]).round().numpy(), written[layer.weight].steps
        sign = np.sign((steps * found).sum(1, keepdims=True))
        np.testing.assert_array_equal(found, sign * steps)
    np.testing.assert_array_equal(written["3.weight"].scale, scale.numpy())
    assert (np.sign(tensors["1.weight"].numpy()) < 0).any()


def test_removed_weights_are_zero(finished):
    tensors = load_tensors(finished.output / "model.safetensors")
    for name, mask in load_tensors(finished.output / "masks.safetensors").items():
        assert not tensors[name][~mask].any()
    report = json.loads((finished.output / "report.json").read_text())
    assert all(one["intact"] for one in report["variants"]["int8"]["audit"])


def test_the_model_that_rounds_is_the_file_in_8_bits(finished):
    """But for its last output, which is no layer's input."""
    recipe = load_recipe(finished.write_recipe())
    net = load_inputs(recipe, finished.model).model.module
    net.load_state_dict(load_tensors(finished.output / "model.safetensors"))
    x = np.load(finished.folder / "test.npz")["x"]
    file, plain = (
        open_session(finished.output / name).run(None, {"input": x})[0]
        for name in ("model.int8.onnx", "model.onnx")
    )
    step = ir.load(finished.output / "model.int8.onnx").graph.initializers["output_scale"]
    with torch.no_grad(), finished.rounding.of(net):
        rounded = net(torch.from_numpy(x)).numpy()
    inside = (file > file.min()) & (file < file.max())  # the range is that of other weights
    nearest = np.abs(rounded - file)[inside]
    assert (nearest < 0.51 * step.const_value.numpy()).mean() > 0.97
    assert (np.abs(plain - file)[inside] < 0.51 * step.const_value.numpy()).mean() < 0.9


def test_the_report_says_so(finished):
    report = json.loads((finished.output / "report.json").read_text())
    assert report["recovery"]["quantization_aware"] == 2
    assert report["quantisation"]["trained"]
    assert report["quantisation"]["rounding"] is None
    text = " ".join((finished.output / "report.md").read_text().split())
    assert "epoch 3 of 3 kept, of which the last 2 quantization-aware;" in text
    assert "activations by the ranges of the quantization-aware epochs; divergence" in text
    dry = finished.run("--dry-run")
    assert "3 epoch(s) at the end, the last 2 quantization-aware, on 200" in dry.output


def test_killed_in_either_kind_of_epoch_it_ends_in_the_same_bytes(aware, monkeypatch):
    aware.recipe["recover"] |= {"distill": {}, "epochs": 4}
    again, aware.output = aware.output, aware.folder / "undisturbed"
    assert aware.run("-q").exit_code == 0
    whole, aware.output = aware.output, again
    trained, epoch_of = [], Training._epoch

    def dies(self, epoch, *arguments):
        if len(trained) in (2, 4):
            trained.append("killed")
            raise OSError("killed")
        trained.append(epoch)
        return epoch_of(self, epoch, *arguments)

    monkeypatch.setattr(Training, "_epoch", dies)
    for _ in range(2):
        assert "stage recover: OSError: killed" in aware.run("-q").output
    assert aware.run("-q").exit_code == 0
    assert trained == [0, 1, "killed", 2, "killed", 3]
    for name in RESULTS:
        assert (whole / name).read_bytes() == (aware.output / name).read_bytes(), name


def test_what_scales_depend_on_trains_anew_and_what_comes_later_does_not(aware, frozen_stages):
    assert aware.run("-q").exit_code == 0
    frozen_stages(recover, quantize)
    for change in ("samples=63", "ranges=entropy", "reduce_range=false"):
        result = aware.run("-q", "--set", f"quantize.{change}")
        assert "recover was computed again" in result.output, change
    for change in ("max_divergence=0.5", "weight_update=none"):
        result = aware.run("-q", "--set", f"quantize.{change}")
        assert "quantize was computed again" in result.output, change


def test_the_ranges_of_a_training_are_not_measured_again(finished, monkeypatch):
    read, drawn_feeds = [], quantize.drawn_feeds

    def note(path, *arguments):
        read.append(path)
        return drawn_feeds(path, *arguments)

    monkeypatch.setattr(quantize, "drawn_feeds", note)
    assert finished.run("-q", "--set", "quantize.max_divergence=0.4").exit_code == 0
    exported = [path.name for path in read if "export" in path.parts]
    assert exported == ["dense.onnx"]


def test_a_layer_that_costs_too_much_is_left_in_float_all_the_same(aware, monkeypatch):
    measured = quantize.Divergence.of

    def of(self, module):
        if not isinstance(module, quantize.FileModule):
            return measured(self, module)
        return float("0.weight" in weights_in_8_bits(module.path))

    monkeypatch.setattr(quantize.Divergence, "of", of)
    result = aware.run("-q")
    assert result.exit_code == 0, result.output
    assert weights_in_8_bits(aware.output / "model.int8.onnx") == {"3.weight"}


def test_channels_that_are_cut_out_do_not_count_for_scales(aware):
    """Nothing depends on a hidden neuron without weights, so its column is not in the file."""
    recipe = load_recipe(aware.write_recipe())
    inputs = load_inputs(recipe, aware.model)
    net = inputs.model.copy()
    with torch.no_grad():
        net[0].weight[5] = 0
        net[3].weight[:, 5] = 100
    in_8_bits = FileIn8Bits.of(recipe.quantize, inputs.form, 1, True)
    rounding = in_8_bits.rounding(inputs.model, net, inputs.calibration)
    (last,) = [one for one in rounding.layers if one.weight == "3.weight"]
    assert last.kept[1] == tuple(n for n in range(16) if n != 5)
    largest = net[3].weight.detach()[:, list(last.kept[1])].abs().amax(1)
    torch.testing.assert_close(weight_scale(net[3].weight, last, 0, 64), largest / 64)


MODELS = """
import torch
from torch import nn

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x.unflatten(1, (2, 3))).relu()
        x = x + self.shared(self.shared(x).relu())
        return self.head(x.mean(1))

class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.head = nn.ConvTranspose1d(1, 4, 2), nn.Linear(28, 3)

    def forward(self, x):
        return self.head(self.up(x[:, None]).relu().flatten(1))

class OtherwiseInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        weight = self.head.weight * 1 if self.training else self.head.weight
        return nn.functional.linear(x, weight, self.head.bias)
"""


def _with_model(project, name):
    (project.folder / "models.py").write_text(MODELS)
    names: dict = {}
    exec(MODELS, names)
    torch.manual_seed(0)
    save_file(names[name]().state_dict(), project.model)
    project.recipe["model"] = {"factory": f"models.py:{name}"}


def test_matrix_products_and_a_layer_that_is_called_twice(aware, monkeypatch):
    _with_model(aware, "Shared")
    start, found = QuantizationAware.start, []

    def note(self, *arguments):
        divergence = start(self, *arguments)
        found.append(self.rounding)
        return divergence

    monkeypatch.setattr(QuantizationAware, "start", note)
    result = aware.run("-q")
    assert result.exit_code == 0, result.output
    layers = _layers(aware.output / "model.int8.onnx")
    assert layers == _trained_with(found[0])
    names = [name for name, *_ in layers]
    assert names == ["first.weight", "shared.weight", "shared.weight", "head.weight"]
    assert layers[1][1:] != layers[2][1:]


@pytest.mark.parametrize(("name", "layer"), [("Transposed", "up"), ("OtherwiseInTraining", "head")])
def test_a_layer_that_cannot_be_rounded_is_refused_before_any_work(aware, name, layer):
    _with_model(aware, name)
    result = aware.run("-q", "--dry-run")
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "recover.quantization_aware): must be 0 for a model that cannot round as its" in said
    assert f"Of {layer}.weight, the file has 1, and the model makes 0" in said


@pytest.mark.filterwarnings("ignore")
def test_a_program_and_an_onnx_file_round_as_the_checkpoint_does(finished):
    recipe = load_recipe(finished.write_recipe())
    net = load_inputs(recipe, finished.model).model.copy()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(4, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(program, finished.folder / "net.pt2")
    onnx.save(onnx.load(finished.output / "dense.onnx"), finished.folder / "net.onnx")
    del finished.recipe["model"]
    output = finished.output
    try:
        for name in ("net.pt2", "net.onnx"):
            finished.output = finished.folder / name.replace(".", "-")
            result = finished.run("-q", model=finished.folder / name)
            assert result.exit_code == 0, result.output
            file = finished.output / "model.int8.onnx"
            ranges = load_file(finished.output / "activation_ranges.safetensors")
            layers = _layers(file)
            assert len(layers) == 2
            low, high = ranges[ir.load(file).graph.inputs[0].name]
            assert layers[0][1] == np.float32((np.float64(high) - low) / 255)
    finally:
        finished.recipe["model"], finished.output = {"factory": "net.py:net"}, output
