"""The file with sparse operators in a run: written, judged, or its absence explained."""

import json

import numpy as np
import onnx
import pytest
import yaml

from mfac_compress.export import Interval, LayerSpeed, Workload, sparse_session
from mfac_compress.export.sparse import library
from mfac_compress.pipeline.stages import accelerate, calibrate, export, prune, recover
from mfac_compress.pipeline.stages.accelerate import Flops, flops_of

SPARSE = "validate.artifact=model.sparse.onnx"


@pytest.fixture
def project(project):
    project.recipe["export"] = {"sparse_kernels": "auto"}
    return project


@pytest.fixture
def always_faster(sparse_takes):
    sparse_takes(0.5)


@pytest.fixture
def never_faster(sparse_takes):
    sparse_takes(2.0)


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "LIBRARY", str(tmp_path / "none.so"))


def _report(project):
    return json.loads((project.output / "report.json").read_text())


def test_the_file_stands_beside_the_plain_one_with_its_library(project, always_faster):
    result = project.run("-q", "--set", "validate.latency={runs: 6, batch_sizes: [1]}")
    assert result.exit_code == 0, result.output

    report = _report(project)
    assert report["kernels"]["sparse+kernels"]["state"] == "used"
    library = project.output / "kernels" / "libmfac_sparse.so"
    size = report["variants"]["sparse+kernels"]["size"]
    assert library.stat().st_size == size["library_bytes"]
    onnx.checker.check_model(project.output / "model.sparse.onnx")
    x = np.load(project.folder / "test.npz")["x"]
    sparse, plain = (
        sparse_session(project.output / name).run(None, {"input": x})[0]
        for name in ("model.sparse.onnx", "model.onnx")
    )
    np.testing.assert_allclose(sparse, plain, rtol=0, atol=1e-5)


def test_all_is_measured_on_it_too(project, always_faster):
    project.run("-q", "--set", "validate.latency={runs: 6, batch_sizes: [1, 4]}")
    report = _report(project)
    variants, kernels = report["variants"], report["kernels"]["sparse+kernels"]
    assert list(variants) == ["dense", "sparse", "sparse+kernels"]
    found = variants["sparse+kernels"]
    assert found["made_from"] == kernels["made_from"] == "sparse"
    assert found["metric"]["value"] == pytest.approx(variants["sparse"]["metric"]["value"])
    assert 0 < found["parity_error"] < 1e-4
    size = (project.output / "model.sparse.onnx").stat().st_size
    assert found["size"]["raw_bytes"] == size
    for name in ("sparse", "sparse+kernels"):
        measured = variants[name]
        assert [one["workload"]["batch_size"] for one in measured["latency"]] == [1, 4]
        assert [one["intact"] for one in measured["audit"]] == [True, True]
        assert measured["sparsity"] == 0.5
    assert [layer["block"] is not None for layer in kernels["layers"]] == [True, True]
    times = kernels["layers"][0]["times"]
    assert {time["workload"]["batch_size"] for time in times} == {1, 4}
    assert kernels["flops"]["sparse"] < kernels["flops"]["dense"]
    text = (project.output / "report.md").read_text()
    for said in ("stock ONNX Runtime", "with sparse operators", "MACs in theory"):
        assert said in text


def test_gates_apply_to_the_file_that_the_recipe_names(project, always_faster):
    gate = ("--set", "validate.gates.max_size_ratio=0.01", "--set", SPARSE)
    result = project.run(*gate)
    report = _report(project)
    (judged,) = [gate for gate in report["gates"] if gate["name"] == "max_size_ratio"]
    assert result.exit_code == 1
    assert "of model.sparse.onnx" in result.output
    assert report["judged"] == judged["variant"] == "sparse+kernels"
    variants = report["variants"]
    assert judged["measured"] == variants["sparse+kernels"]["size"]["ratio"]
    assert judged["measured"] != variants["sparse"]["size"]["ratio"]


def test_where_nothing_is_faster_there_is_no_file_and_a_reason(project, never_faster):
    assert project.run("-q").exit_code == 0
    report = _report(project)
    kernels = report["kernels"]["sparse+kernels"]
    assert kernels["state"] == "no gain"
    assert list(report["variants"]) == ["dense", "sparse"]
    assert kernels["reason"] in (project.output / "report.md").read_text()
    assert not (project.output / "model.sparse.onnx").exists()
    assert not (project.output / "kernels").exists()


def test_gates_on_a_file_that_was_not_written_end_the_run(project, never_faster):
    result = project.run("-q", "--set", SPARSE)
    assert result.exit_code == 3
    assert "validate.artifact" in result.output
    assert "It was not: " in result.output


NO_GAIN, NOISY = Interval(0.95, 0.9, 1.05), Interval(0.95, 0.5, 1.5)


@pytest.mark.parametrize(
    ("compared", "state", "said"),
    [
        (NO_GAIN, "no gain", "no speed-up at batch 1, 1 thread"),
        (NOISY, "too noisy", "the machine is too noisy to judge"),
    ],
)
@pytest.mark.parametrize("latency", ["{runs: 6, batch_sizes: [1]}", "null"])
def test_what_is_published_is_faster_in_the_comparison_that_the_report_prints(
    project, sparse_takes, compared, state, said, latency
):
    """Chosen as twice as fast, and then compared: the report's own figures decide."""
    sparse_takes(0.5, compared)
    assert project.run("-q", "--set", f"validate.latency={latency}").exit_code == 0
    report = _report(project)
    kernels = report["kernels"]["sparse+kernels"]
    assert kernels["state"] == state
    assert said in kernels["reason"]
    text = (project.output / "report.md").read_text()
    assert f"model.sparse.onnx not written: {kernels['reason']}" in text
    assert "(model.sparse.onnx, not written)" in text
    measured = report["variants"]["sparse+kernels"]
    assert [one["written"] for one in report["variants"].values()] == [True, True, False]
    ratio = measured["latency"][0]["ratio"]
    assert (ratio["low"], ratio["high"]) == (compared.low, compared.high)
    assert all(layer["block"] is None for layer in kernels["layers"])
    assert not (project.output / "model.sparse.onnx").exists()
    assert not (project.output / "kernels").exists()


def test_what_an_earlier_run_found_does_not_decide(project, sparse_takes, frozen_stages):
    """The candidate is cached, whether it is faster is measured in every run."""
    sparse_takes(0.5, NOISY)
    project.run("-q")
    frozen_stages(accelerate)
    for compared, state in [(Interval(0.5, 0.4, 0.6), "used"), (NO_GAIN, "no gain")]:
        sparse_takes(0.5, compared)
        assert project.run("-q").exit_code == 0
        assert _report(project)["kernels"]["sparse+kernels"]["state"] == state
        assert (project.output / "model.sparse.onnx").exists() == (state == "used")


def test_a_machine_that_is_too_noisy_ends_a_run_that_ships_the_file(project, sparse_takes):
    sparse_takes(0.5, NOISY)
    result = project.run("-q", "--set", SPARSE)
    assert result.exit_code == 3
    assert "too noisy to judge" in result.output
    assert "Run again" in result.output
    assert not (project.output / "report.json").exists()


def test_a_file_of_an_earlier_run_does_not_stay(project, always_faster, monkeypatch):
    project.run("-q")
    assert (project.output / "kernels").exists()
    assert project.run("-q", "--set", "export.sparse_kernels=off").exit_code == 0
    assert not (project.output / "model.sparse.onnx").exists()
    assert not (project.output / "kernels").exists()


def test_the_layers_that_are_timed_are_shown(project, never_faster):
    shown = project.run("-v").output
    for layer in _report(project)["kernels"]["sparse+kernels"]["layers"]:
        assert f"{layer['weight']} (" in shown


def test_off_is_off_and_costs_no_stage_before_it(project, always_faster, frozen_stages):
    project.run("-q")
    frozen_stages(calibrate, prune, recover, export)
    assert project.run("-q", "--set", "export.sparse_kernels=off").exit_code == 0
    report = _report(project)
    assert report["kernels"]["sparse+kernels"]["state"] == "off"
    flops = report["kernels"]["sparse+kernels"]["flops"]
    assert flops["sparse"] < flops["dense"]


def test_other_gates_do_not_time_again_and_other_batch_sizes_do(
    project, always_faster, frozen_stages
):
    project.run("-q")
    frozen_stages(accelerate)
    assert project.run("-q", "--set", "validate.gates.max_size_ratio=1").exit_code == 0
    changed = project.run("-q", "--set", "validate.latency={runs: 6, batch_sizes: [2]}")
    assert "computed again" in changed.output


def test_without_the_library_the_run_says_so(project, no_library):
    assert project.run("-q").exit_code == 0
    report = _report(project)
    assert report["kernels"]["sparse+kernels"]["state"] == "not built"
    assert report["kernels"]["sparse+kernels"]["layers"][0]["sparsity"] > 0
    resolved = yaml.safe_load((project.output / "recipe.resolved.yaml").read_text())
    assert resolved["export"]["sparse_kernels"] == "off"


def test_gates_on_the_file_without_the_library_are_refused_before_any_work(project, no_library):
    result = project.run("-q", "--set", SPARSE)
    assert result.exit_code == 2
    assert "validate.artifact" in result.output
    assert "must be built" in result.output
    assert not project.output.exists()


def test_gates_on_the_file_with_kernels_off_are_refused(project):
    result = project.run("-q", "--set", SPARSE, "--set", "export.sparse_kernels=off")
    assert result.exit_code == 2
    assert "export.sparse_kernels is off" in result.output


def test_the_resolved_recipe_says_auto_where_they_were_tried(project, never_faster):
    project.run("-q")
    resolved = yaml.safe_load((project.output / "recipe.resolved.yaml").read_text())
    assert resolved["export"]["sparse_kernels"] == "auto"


def test_a_dry_run_tells_what_is_there(project, no_library):
    assert "sparse kernels: not built" in project.run("--dry-run").output


def _layer(macs, kept):
    return LayerSpeed("n", "Gemm", "w", (2, 2), None, macs, kept, None, (), "")


@pytest.mark.parametrize("layers", [[], [_layer(None, None)]])
def test_a_model_of_which_nothing_is_counted_has_saved_nothing(layers):
    assert flops_of(layers, Workload(4, 1)) == Flops(Workload(4, 1), 0, 0, 1.0)


def test_multiplications_of_layers_are_summed_up():
    layers = [_layer(30, 10), _layer(None, None), _layer(10, 0)]
    assert flops_of(layers, Workload(4, 1)) == Flops(Workload(4, 1), 40, 10, 0.25)
