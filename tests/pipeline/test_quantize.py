"""Files in 8 bits in a run: written, measured, judged, or refused with a reason."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mfac_compress.export import open_session
from mfac_compress.export.quantise import StaticQuantiser
from mfac_compress.export.quantised_weights import signed_weights
from mfac_compress.export.quantiser_parts import weights_in_8_bits
from mfac_compress.pipeline.stages import export, prune, quantize, recover, rounding, validate
from mfac_compress.pipeline.stages.rounding import LayerRounding

ON = ("--set", "quantize={mode: static, samples: 64, weight_update: none}")


def _report(project):
    return json.loads((project.output / "report.json").read_text())


OBS = ("--set", "quantize={mode: static, samples: 64, weight_update: obs}")


@pytest.fixture(scope="module")
def finished_int8(module_project):
    latency = ("--set", "validate.latency={runs: 6, batch_sizes: [1]}")
    result = module_project.run(*ON, *latency)
    assert result.exit_code == 0, result.output
    return module_project, result.output


@pytest.fixture
def coarse(monkeypatch):
    """A quantiser whose files come out as something else: the tests say as what."""

    measured = quantize.Divergence.of

    def say(divergence_of):
        def of(self, module):
            if not isinstance(module, quantize.FileModule):
                return measured(self, module)
            return divergence_of(weights_in_8_bits(module.path))

        monkeypatch.setattr(quantize.Divergence, "of", of)

    return say


def test_the_files_stand_beside_those_in_float(finished_int8):
    project, _ = finished_int8
    report = _report(project)
    assert list(report["variants"]) == ["dense", "dense-int8", "sparse", "int8"]
    x = np.load(project.folder / "test.npz")["x"]
    for name, source in [("model.int8.onnx", "model.onnx"), ("dense.int8.onnx", "dense.onnx")]:
        assert weights_in_8_bits(project.output / name) == {"0.weight", "3.weight"}
        one, two = (
            open_session(project.output / file).run(None, {"input": x})[0]
            for file in (name, source)
        )
        assert 0 < np.linalg.norm(one - two) < 0.05 * np.linalg.norm(two)


def test_the_report_says_what_is_in_8_bits(finished_int8):
    project, shown = finished_int8
    found = _report(project)["quantisation"]
    assert found["mode"] == "static"
    assert 0 < found["divergence"] == found["all_layers"] < found["max_divergence"]
    assert [(one["weight"], one["int8"], one["cost"]) for one in found["layers"]] == [
        ("0.weight", True, None),
        ("3.weight", True, None),
    ]
    said = "quantize, static: 2 of 2 layers (100.0% of their weights) in 8 bits"
    assert said in (project.output / "report.md").read_text()
    assert said in " ".join(shown.split())


def test_all_is_measured_on_them(finished_int8):
    report = _report(finished_int8[0])
    for name, measured in report["variants"].items():
        assert measured["metric"]["interval"] is not None
        assert [one["reference"] for one in measured["latency"]] == ["dense"] * (name != "dense")
        over_int8 = [one["reference"] for one in measured["latency_int8"]]
        assert over_int8 == ["dense-int8"] * (name == "int8")
    int8 = report["variants"]["int8"]
    assert int8["sparsity"] == 0.5
    assert [one["intact"] for one in int8["audit"]] == [True, True]
    assert int8["made_from"] == "sparse"
    assert int8["parity_error"] is None
    assert report["variants"]["dense-int8"]["audit"] == []


def test_gates_apply_to_the_int8_file_and_those_on_correctness_to_all(finished_int8):
    project, _ = finished_int8
    report = _report(project)
    assert report["judged"] == "int8"
    assert [(gate["name"], gate["variant"]) for gate in report["gates"]] == [
        ("max_metric_drop", "int8"),
        ("min_sparsity", "int8"),
        ("max_metric_drop", "sparse"),
        ("min_sparsity", "sparse"),
        ("max_parity_error", "sparse"),
    ]
    assert report["verdict"] == "pass"


@pytest.mark.parametrize("artifact", ["model.onnx", "model.int8.onnx"])
def test_a_file_in_8_bits_that_is_worse_fails_the_run_whatever_ships(
    project, monkeypatch, artifact
):
    """A metric gate holds for every file that is written."""
    written = StaticQuantiser.write

    def write_wrongly(self, output, **options):
        written(self, output, **options)
        if output.name == "model.int8.onnx":
            _answer_wrongly(output)

    monkeypatch.setattr(StaticQuantiser, "write", write_wrongly)
    tolerant = ("--set", "quantize.max_divergence=null")
    result = project.run("-q", *ON, *tolerant, "--set", f"validate.artifact={artifact}")
    assert result.exit_code == 1, result.output
    failed = [gate for gate in _report(project)["gates"] if not gate["passed"]]
    assert [(gate["name"], gate["variant"]) for gate in failed] == [("max_metric_drop", "int8")]


def _answer_wrongly(path):
    """Turn the last layer's signs round: a sound file with all its zeros."""
    model = onnx.load(path)
    (tensor,) = [one for one in model.graph.initializer if one.name == "3.weight_quantized"]
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)


def test_layers_that_cost_too_much_are_left_in_float_and_named(project, coarse):
    costs = {"0.weight": 1.0, "3.weight": 0.001}
    coarse(lambda inside: sum(costs[name] for name in inside))
    assert project.run("-q", *ON).exit_code == 0
    assert weights_in_8_bits(project.output / "model.int8.onnx") == {"3.weight"}
    found = _report(project)["quantisation"]
    assert found["all_layers"] == 1.001
    assert found["divergence"] == 0.001
    assert [(one["weight"], one["int8"], one["cost"]) for one in found["layers"]] == [
        ("0.weight", False, 1.0),
        ("3.weight", True, 0.001),
    ]
    text = (project.output / "report.md").read_text()
    assert "| 0.weight | Gemm | 96 | float | 1 |" in text
    assert "1 of 2 layers (33.3% of their weights) in 8 bits" in text
    assert "Only 33.3%" in text


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_model_of_which_no_layer_can_be_in_8_bits_ends_the_run(project, coarse, value):
    """All in float, under the name of a file in 8 bits, is not what was asked for."""
    coarse(lambda inside: value)
    result = project.run("-q", *ON)
    assert result.exit_code == 3
    assert "quantize.max_divergence must allow at least one layer" in result.output
    assert not (project.output / "report.json").exists()
    assert not (project.output / "model.int8.onnx").exists()


def test_a_quantiser_that_quantises_nothing_ends_the_run(project, monkeypatch):
    written = StaticQuantiser.write

    def write_nothing(self, output, **options):
        written(self, output, in_float=[layer.node for layer in self.layers])

    monkeypatch.setattr(StaticQuantiser, "write", write_nothing)
    result = project.run("-q", *ON)
    assert result.exit_code == 3
    assert "must have a layer in 8 bits" in result.output


def test_without_the_tolerance_nothing_is_left_in_float(project, coarse):
    coarse(lambda inside: 1000.0)
    assert project.run("-q", *ON, "--set", "quantize.max_divergence=null").exit_code == 0
    found = _report(project)["quantisation"]
    assert found["max_divergence"] is None
    assert all(one["int8"] for one in found["layers"])


@pytest.mark.parametrize("given", [ON, OBS])
def test_validation_samples_choose_nothing(project, frozen_stages, given):
    """Other validation samples leave the files as they are; other calibration samples do not."""
    assert project.run("-q", *given).exit_code == 0
    frozen_stages(quantize)
    other = ("--set", "data.splits.validation={path: test.npz, rows: [0, 150]}")
    assert project.run("-q", *given, *other).exit_code == 0
    other = ("--set", "data.splits.calibration={path: train.npz, rows: [0, 199]}")
    assert "computed again" in project.run("-q", *given, *other).output


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_weights_rounded_by_the_solver_are_in_the_file(project, mode):
    given = f"quantize={{mode: {mode}, samples: 64, max_divergence: null"
    assert project.run("-q", "--set", f"{given}, weight_update: none}}").exit_code == 0
    path = project.output / "model.int8.onnx"
    nearest, metadata = signed_weights(path), onnx.load(path).metadata_props
    result = project.run("--set", f"{given}}}")
    assert result.exit_code == 0, result.output
    assert "rounded by the layerwise solver" in " ".join(result.output.split())
    report = _report(project)
    found, measured = report["quantisation"]["rounding"], report["variants"]["int8"]
    assert all(layer["solved_error"] is not None for layer in found["layers"])
    solved = {layer["weight"] for layer in found["layers"] if layer["solved"]}
    assert solved
    assert found["kept"] == (found["solved"] < found["nearest"])
    assert report["quantisation"]["divergence"] == min(found["solved"], found["nearest"])
    for name, weight in signed_weights(path).items():
        np.testing.assert_array_equal(weight.scale, nearest[name].scale)
        changed = (weight.steps != nearest[name].steps).any()
        assert changed == (name in solved and found["kept"])
    assert [one["intact"] for one in measured["audit"]] == [True, True]
    assert onnx.load(path).metadata_props != metadata


def test_what_brings_the_outputs_no_nearer_is_not_in_the_file(project, monkeypatch):
    """Layers may each be nearer to what they were, and the model not."""
    assert project.run("-q", *ON).exit_code == 0
    nearest = signed_weights(project.output / "model.int8.onnx")

    def turned(model, nearest, *_):
        layers = (LayerRounding(name, True, 1.0, 0.5, None) for name in nearest)
        return {name: -one.steps for name, one in nearest.items()}, tuple(layers)

    monkeypatch.setattr(quantize, "round_layers", turned)
    tolerant = ("--set", OBS[1].replace("obs", "obs, max_divergence: null"))
    assert project.run("-q", *tolerant).exit_code == 0
    found = _report(project)["quantisation"]
    assert not found["rounding"]["kept"]
    assert found["divergence"] == found["rounding"]["nearest"] < found["rounding"]["solved"]
    for name, one in signed_weights(project.output / "model.int8.onnx").items():
        np.testing.assert_array_equal(one.steps, nearest[name].steps)
    assert ", 0 rounded by the layerwise solver" in (project.output / "report.md").read_text()


def test_layers_that_the_solver_cannot_round_are_named(project, monkeypatch):
    monkeypatch.setattr(rounding, "_MOST_BYTES", 8 * 8**2)
    assert project.run("-q", *OBS).exit_code == 0
    layers = _report(project)["quantisation"]["rounding"]["layers"]
    refused = [one for one in layers if one["reason"]]
    assert refused
    for one in refused:
        assert not one["solved"]
        said = f"{one['weight']} is rounded to nearest: the second moments"
        assert said in (project.output / "report.md").read_text()


def test_what_was_made_otherwise_is_not_reused(project, frozen_stages):
    assert project.run("-q", *ON).exit_code == 0
    frozen_stages(export, prune, recover, quantize)
    changes = ("per_channel=false", "samples=63", "max_divergence=1e-9", "ranges=entropy")
    for change in (*changes, "weight_update=obs", "reduce_range=false"):
        result = project.run("-q", *ON, "--set", f"quantize.{change}")
        assert "quantize was computed again" in result.output, change


def test_a_damaged_file_is_made_anew(project):
    assert project.run("-q", *ON).exit_code == 0
    (path,) = (project.output / ".cache" / "quantize").glob("*/model.int8.onnx")
    before = path.read_bytes()
    path.write_bytes((project.output / "model.onnx").read_bytes())
    result = project.run(*ON)
    assert result.exit_code == 0
    assert "quantize: made anew" in result.output
    (path,) = (project.output / ".cache" / "quantize").glob("*/model.int8.onnx")
    assert path.read_bytes() == before


def test_files_of_an_earlier_run_do_not_stay(project):
    assert project.run("-q", *ON).exit_code == 0
    assert (project.output / "dense.int8.onnx").exists()
    assert project.run("-q").exit_code == 0
    assert not list(project.output.glob("*int8*"))
    report = _report(project)
    assert report["quantisation"] is None
    assert report["judged"] == "sparse"


def test_switched_off_by_set_the_keys_of_the_file_do_not_count(project):
    project.recipe["quantize"] = {"mode": "static", "samples": 64, "weight_update": "obs"}
    assert project.run("-q", "--dry-run", "--set", "quantize.mode=off").exit_code == 0
    both = ("--set", "quantize.mode=off", "--set", "quantize.samples=9")
    result = project.run("-q", "--dry-run", *both)
    assert result.exit_code == 2
    assert "quantize.samples must be left out where quantize.mode is off" in result.output


def test_off_costs_no_stage(project, frozen_stages):
    assert project.run("-q").exit_code == 0
    frozen_stages(export, validate)
    assert project.run("-q", "--set", "quantize=off").exit_code == 0


def test_dynamic_ranges(project):
    result = project.run("-q", "--set", "quantize={mode: dynamic, samples: 64}")
    assert result.exit_code == 0, result.output
    report = _report(project)
    assert report["quantisation"]["mode"] == "dynamic"
    assert report["variants"]["int8"]["sparsity"] == 0.5
    assert all(one["intact"] for one in report["variants"]["int8"]["audit"])


def test_the_file_with_sparse_operators_must_be_faster_than_the_one_it_was_made_from(
    project, sparse_takes
):
    sparse_takes(0.5)
    project.recipe["export"] = {"sparse_kernels": "auto"}
    assert project.run("-q", *ON).exit_code == 0
    report = _report(project)
    assert report["kernels"]["int8+kernels"]["state"] == "used"
    measured = report["variants"]["int8+kernels"]
    assert measured["made_from"] == "int8"
    assert measured["sparsity"] == 0.5
    assert all(one["intact"] for one in measured["audit"])
    assert (project.output / "model.int8.sparse.onnx").exists()
    assert ("max_metric_drop", "int8+kernels") in [
        (gate["name"], gate["variant"]) for gate in report["gates"]
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("quantize.samples=5000", "quantize.samples"),
        ("calibrate.holdout=0", "calibrate.holdout"),
        ("quantize.mode=half", "quantize.mode"),
        ("quantize=half", "quantize"),
        ("quantize={mode: dynamic, ranges: entropy}", "quantize.ranges"),
        ("quantize={mode: off, weight_update: none}", "quantize.weight_update"),
        ("quantize={mode: off, samples: 9}", "quantize.samples"),
        ("validate.artifact=dense.int8.onnx", "validate.artifact"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(project, change, said):
    given = (*ON, "--set", "recover.batchnorm=never", "--set", "prune.first_order=false")
    result = project.run("-q", "--dry-run", *given, "--set", change)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_a_file_in_8_bits_cannot_ship_where_none_is_made(project):
    result = project.run("-q", "--set", "validate.artifact=model.int8.onnx")
    assert result.exit_code == 2
    assert "quantize.mode is off" in result.output


def test_a_missing_quantiser_is_refused_before_any_work(project, monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    result = project.run("-q", *ON)
    assert result.exit_code == 2
    assert "onnxruntime.quantization" in result.output
    assert not project.output.exists()


def test_a_dry_run_says_what_ships(project):
    result = project.run("--dry-run", *ON)
    assert result.exit_code == 0, result.output
    assert "8 bits: model.int8.onnx, static, on 64 calibration samples" in result.output
    assert "the gates apply to model.int8.onnx" in result.output
