"""The file with sparse operators in a run: written, judged, or its absence explained."""

import json

import numpy as np
import onnx
import pytest
import yaml

from mfac_compress.export import kernel_library, sparse_session
from mfac_compress.export.sparse import choose, library, whole
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.pipeline.stages import accelerate, calibrate, export, prune, recover

SPARSE = "validate.artifact=model.sparse.onnx"


@pytest.fixture
def project(project):
    project.recipe["export"] = {"sparse_kernels": "auto"}
    return project


@pytest.fixture
def kernels():
    try:
        return kernel_library()
    except ValueError:
        pytest.skip("the sparse kernels are not built: there was no C++ compiler")


@pytest.fixture
def always_faster(kernels, monkeypatch):
    """Sparse operators take half the time, whatever the clock says."""
    _pretend(monkeypatch, 0.5)


@pytest.fixture
def never_faster(kernels, monkeypatch):
    _pretend(monkeypatch, 2.0)


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "LIBRARY", str(tmp_path / "none.so"))


def _pretend(monkeypatch, sparse_ms):
    def race(models, *_, **__):
        domains = [[imported.domain for imported in model.opset_import] for model in models]
        return [[sparse_ms if DOMAIN in each else 1.0] * 3 for each in domains]

    monkeypatch.setattr(choose, "race", race)
    monkeypatch.setattr(whole, "race", race)


def _report(project):
    return json.loads((project.output / "report.json").read_text())


def test_the_file_stands_beside_the_plain_one_with_its_library(project, always_faster):
    result = project.run("-q", "--set", "validate.latency={runs: 6, batch_sizes: [1]}")
    assert result.exit_code == 0, result.output

    kernels = _report(project)["sparse_kernels"]
    assert kernels["state"] == "used"
    library = project.output / "kernels" / "libmfac_sparse.so"
    assert library.stat().st_size == kernels["library_bytes"]
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
    kernels = report["sparse_kernels"]
    assert kernels["metric"]["dense"] == report["metric"]["dense"]
    assert kernels["metric"]["samples"] == 200
    assert kernels["parity_error"] < 1e-4
    size = (project.output / "model.sparse.onnx").stat().st_size
    assert kernels["size_bytes"]["sparse"]["raw_bytes"] == size
    assert [one["batch_size"] for one in kernels["latency"]] == [1, 4]
    assert [layer["block"] is not None for layer in kernels["layers"]] == [True, True]
    assert {time["batch_size"] for time in kernels["layers"][0]["times"]} == {1, 4}
    text = (project.output / "report.md").read_text()
    for said in ("stock ONNX Runtime", "with the sparse kernels", "FLOPs in theory"):
        assert said in text


def test_gates_apply_to_the_file_that_the_recipe_names(project, always_faster):
    gate = ("--set", "validate.gates.max_size_ratio=0.01", "--set", SPARSE)
    result = project.run(*gate)
    report = _report(project)
    (judged,) = [gate for gate in report["gates"] if gate["name"] == "max_size_ratio"]
    assert result.exit_code == 1
    assert "of model.sparse.onnx" in result.output
    assert report["artifact"] == "model.sparse.onnx"
    assert judged["measured"] == report["sparse_kernels"]["size_bytes"]["ratio"]
    assert judged["measured"] != report["size_bytes"]["ratio"]


def test_where_nothing_is_faster_there_is_no_file_and_a_reason(project, never_faster):
    assert project.run("-q").exit_code == 0
    kernels = _report(project)["sparse_kernels"]
    assert (kernels["state"], kernels["metric"], kernels["latency"]) == ("no gain", None, [])
    assert kernels["reason"] in (project.output / "report.md").read_text()
    assert not (project.output / "model.sparse.onnx").exists()
    assert not (project.output / "kernels").exists()


def test_gates_on_a_file_that_was_not_written_end_the_run(project, never_faster):
    result = project.run("-q", "--set", SPARSE)
    assert result.exit_code == 3
    assert "validate.artifact" in result.output
    assert "It was not: " in result.output


def test_a_file_of_an_earlier_run_does_not_stay(project, always_faster, monkeypatch):
    project.run("-q")
    assert (project.output / "kernels").exists()
    assert project.run("-q", "--set", "export.sparse_kernels=off").exit_code == 0
    assert not (project.output / "model.sparse.onnx").exists()
    assert not (project.output / "kernels").exists()


def test_the_layers_that_are_timed_are_shown(project, never_faster):
    shown = project.run("-v").output
    for layer in _report(project)["sparse_kernels"]["layers"]:
        assert f"{layer['weight']} (" in shown


def test_off_is_off_and_costs_no_stage_before_it(project, always_faster, frozen_stages):
    project.run("-q")
    frozen_stages(calibrate, prune, recover, export)
    assert project.run("-q", "--set", "export.sparse_kernels=off").exit_code == 0
    report = _report(project)
    assert report["sparse_kernels"]["state"] == "off"
    assert report["flops"]["sparse"] < report["flops"]["dense"]


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
    assert report["sparse_kernels"]["state"] == "not built"
    assert report["sparse_kernels"]["layers"][0]["sparsity"] > 0
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
