"""A whole run: what it leaves behind, what it reuses, what it never leaves."""

import json
import os
import re
import shutil
import signal
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from mfac_compress.pipeline import compress, load_recipe
from mfac_compress.pipeline.run.directory import RESULTS
from mfac_compress.pipeline.stages import calibrate, export, prune, recover, validate
from mfac_compress.pipeline.verdict.report import Report

FILES = {
    "model.onnx",
    "dense.onnx",
    "model.safetensors",
    "masks.safetensors",
    "recipe.resolved.yaml",
    "report.json",
    "report.md",
    "manifest.json",
}


def _files(project):
    return {path.name for path in project.output.iterdir() if not path.name.startswith(".")}


def test_a_run_writes_its_files_and_nothing_else(finished):
    assert _files(finished) == FILES


def test_the_report_keeps_its_contract(finished):
    text = (finished.output / "report.json").read_text()
    report = json.loads(text)

    assert Report.model_validate_json(text).verdict == report["verdict"] == "pass"
    assert report["schema"] == 4
    gate = {"name", "variant", "threshold", "measured", "passed", "reason"}
    assert gate == set(report["gates"][0])
    assert list(report["variants"]) == ["dense", "sparse"]
    assert report["judged"] in report["variants"]
    for measured in report["variants"].values():
        assert {"file", "metric", "size", "parity_error", "audit", "latency"} <= set(measured)
        assert {"value", "interval", "drop", "drop_interval"} <= set(measured["metric"])
    workloads = [one["workload"] for one in report["variants"]["sparse"]["latency"]]
    assert [(one["batch_size"], one["threads"]) for one in workloads] == [(1, 1), (4, 1)]


def test_the_schema_of_the_report_describes_what_it_holds(finished):
    """Every field of every part has its words, which come from the objects themselves."""
    schema = Report.model_json_schema()
    report = json.loads((finished.output / "report.json").read_text())
    assert set(schema["properties"]) == set(report)
    for part in ("Measured", "MetricDrop", "FileSize", "TensorAudit", "LatencyComparison"):
        assert schema["$defs"][part]["description"]
        assert schema["$defs"][part]["additionalProperties"] is False
    assert schema["$defs"]["FileSize"]["properties"]["ratio"]["description"]


def test_the_metric_is_that_of_the_file_in_onnx_runtime(finished):
    report = json.loads((finished.output / "report.json").read_text())
    data = np.load(finished.folder / "test.npz")
    for name, file in [("dense", "dense.onnx"), ("sparse", "model.onnx")]:
        session = onnxruntime.InferenceSession(str(finished.output / file))
        outputs = session.run(None, {"input": data["x"]})[0]
        accuracy = (outputs.argmax(1) == data["y"]).mean()
        assert report["variants"][name]["metric"]["value"] == pytest.approx(accuracy)


def test_removed_weights_are_positive_zeros_everywhere(finished):
    masks = load_file(finished.output / "masks.safetensors")
    weights = load_file(finished.output / "model.safetensors")
    stored = onnx.load(finished.output / "model.onnx").graph.initializer
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in stored}

    assert set(masks) == {"0.weight", "3.weight"}
    for name, mask in masks.items():
        assert not weights[name][~mask].any()
        removed = tensors[name][~mask.numpy()]
        assert not removed.any()
        assert not np.signbit(removed).any()
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed == sum(mask.numel() for mask in masks.values()) // 2


def test_the_file_says_where_it_came_from(finished):
    properties = {p.key: p.value for p in onnx.load(finished.output / "model.onnx").metadata_props}
    manifest = json.loads((finished.output / "manifest.json").read_text())

    assert properties["mfac_compress.recipe_sha256"] == manifest["recipe_sha256"]
    assert float(properties["mfac_compress.sparsity"]) == pytest.approx(0.5)
    assert properties["version.torch"] == torch.__version__
    assert {"model_sha256", "data_sha256", "seed", "machine", "seconds"} <= set(manifest)


def test_the_resolved_recipe_gives_the_same_run(finished):
    resolved = load_recipe(finished.output / "recipe.resolved.yaml")

    report = compress(resolved, finished.model, finished.folder / "again")

    first, second = (
        load_file(folder / "model.safetensors")
        for folder in (finished.output, finished.folder / "again")
    )
    assert report.verdict == "pass"
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_changed_gates_compute_nothing_again(project, frozen_stages):
    assert project.run().exit_code == 0
    frozen_stages(calibrate, prune, recover, export, validate)

    result = project.run("--set", "validate.gates.min_sparsity=0.9", "-v")

    assert result.exit_code == 1, result.output
    assert re.search(r"validate +reused", result.output)


def test_changed_recovery_does_not_calibrate_or_prune_again(project, frozen_stages):
    assert project.run().exit_code == 0
    before = load_file(project.output / "model.safetensors")
    frozen_stages(calibrate, prune)

    assert project.run("--set", "recover.lr=0.1").exit_code == 0

    after = load_file(project.output / "model.safetensors")
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_changed_damping_prunes_again_with_the_same_gradients(project, frozen_stages):
    assert project.run().exit_code == 0
    before = load_file(project.output / "model.safetensors")
    frozen_stages(calibrate)

    assert project.run("--set", "fisher.damping=0.1").exit_code == 0

    after = load_file(project.output / "model.safetensors")
    assert not torch.equal(before["0.weight"], after["0.weight"])


@pytest.mark.parametrize("change", ["run.seed=1", "calibrate.num_gradients=40"])
def test_what_changes_the_gradients_calibrates_again(project, frozen_stages, change):
    assert project.run().exit_code == 0
    frozen_stages(calibrate)

    result = project.run("--set", change)

    assert result.exit_code == 3
    assert "calibrate was computed again" in result.output


def test_a_changed_model_file_starts_over(project, frozen_stages):
    assert project.run().exit_code == 0
    state = load_file(project.model)
    state["0.weight"] *= 1.01
    torch.save(state, project.folder / "other.pt")
    frozen_stages(calibrate)

    assert project.run(model=project.folder / "other.pt").exit_code == 3


def test_a_failed_stage_is_named_and_leaves_no_results(project, monkeypatch):
    assert project.run().exit_code == 0

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(recover, "recover", fail)
    result = project.run("--set", "recover.lr=0.02")

    assert result.exit_code == 3
    assert "stage recover: OSError: No space left on device" in result.output
    assert "Traceback" not in result.output
    assert not _files(project) & set(RESULTS)


def test_an_interrupted_stage_is_named_and_starts_over(project, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune, "prune", interrupt)
        result = project.run()
    assert result.exit_code == 3
    assert "stage prune-00: interrupted" in result.output

    assert project.run().exit_code == 0


def test_a_failed_gate_still_writes_everything(project):
    result = project.run("--set", "validate.gates.max_size_ratio=0.01")

    assert result.exit_code == 1
    assert _files(project) == FILES
    report = json.loads((project.output / "report.json").read_text())
    failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
    assert (report["verdict"], failed) == ("fail", ["max_size_ratio"])


def test_sparsity_is_said_of_the_whole_model_too(project):
    result = project.run(
        *("--set", "prune.include=['3']"), *("--set", "validate.gates.min_model_sparsity=0.2")
    )

    assert result.exit_code == 1
    report = json.loads((project.output / "report.json").read_text())
    sparsity, measured = report["sparsity"], report["variants"]["sparse"]
    assert (measured["sparsity"], sparsity["weights"]) == (0.5, 48)
    assert measured["model_sparsity"] == 24 / sparsity["parameters"]
    left_out = sparsity["left_out"]
    assert left_out["0.weight"] == {"reason": "not matched by prune.include", "size": 96}
    sizes = sum(one["size"] for one in left_out.values())
    assert sizes + sparsity["weights"] == sparsity["parameters"]
    failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
    assert failed == ["min_model_sparsity"]


def test_wrong_labels_are_warned_of_and_stopped_by_a_gate_on_the_metric(project):
    """The drop is small where there is nothing to lose."""
    with np.load(project.folder / "test.npz") as data:
        np.savez(project.folder / "test.npz", x=data["x"], y=(data["y"] + 1) % 3)
    result = project.run("--set", "validate.gates.min_metric=0.5")

    assert result.exit_code == 1
    report = json.loads((project.output / "report.json").read_text())
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == ["min_metric"]
    assert any("better than chance" in warning for warning in report["warnings"])


def test_a_metric_that_writes_ends_with_its_name(project):
    (project.folder / "own.py").write_text(
        "def score(outputs, targets):\n    targets[:] = 0\n    return 1.0\n"
    )
    project.recipe["task"] = {"metric": "own.py:score"}

    result = project.run()

    assert result.exit_code == 2
    assert "'own.py:score' wrote into targets" in result.output


def test_a_metric_in_percent_is_judged_as_one_from_zero_to_one(project):
    (project.folder / "own.py").write_text(
        "def percent(outputs, targets):\n    return 100 * (outputs.argmax(1) == targets).double()\n"
    )
    project.run()
    share = json.loads((project.output / "report.json").read_text())["variants"]["sparse"]["metric"]
    project.recipe["task"] = {"metric": "own.py:percent", "range": [0, 100]}
    project.recipe["validate"]["gates"]["max_metric_drop"] = 50
    assert project.run().exit_code == 0
    report = json.loads((project.output / "report.json").read_text())
    percent = report["variants"]["sparse"]["metric"]
    for name in ("interval", "drop_interval"):
        assert percent[name] == pytest.approx([100 * end for end in share[name]])


def test_the_parity_gate_looks_at_every_validation_sample(project):
    """The last ones are large, and so are their rounding errors; the first batch is sound."""
    path = project.folder / "test.npz"
    with np.load(path) as arrays:
        x, y = arrays["x"].copy(), arrays["y"]
    x[-20:] *= 1e6
    np.savez(path, x=x, y=y)
    project.recipe["prune"] = {"method": "magnitude", "sparsity": 0.5}
    project.recipe["recover"] = {"epochs": 0}
    project.recipe["validate"] |= {"batch_size": 64, "gates": {"max_parity_error": 1e-3}}

    assert project.run().exit_code == 1
    report = json.loads((project.output / "report.json").read_text())
    assert report["variants"]["sparse"]["parity_error"] > 1e-3


def test_a_gate_without_its_measurement_fails(project):
    result = project.run("--set", "validate.gates.max_latency_ratio=100")

    assert result.exit_code == 1
    assert "was not measured" in (project.output / "report.md").read_text()


@pytest.mark.parametrize("update", ["joint", "single", "none"])
@pytest.mark.parametrize("block_size", [16, "full"])
def test_every_update_in_both_representations(project, update, block_size):
    project.recipe["prune"] = {"sparsity": 0.6, "update": update, "steps": 2}
    project.recipe["fisher"] = {"block_size": block_size}
    project.recipe["recover"] = {"epochs": 0}

    assert project.run().exit_code == 0

    masks = load_file(project.output / "masks.safetensors")
    weights = load_file(project.output / "model.safetensors")
    dense = load_file(project.model)
    moved = any((weights[n] != dense[n])[mask].any() for n, mask in masks.items())
    assert moved == (update != "none")


@pytest.mark.parametrize(
    "change",
    [
        {"prune": {"selection": "independent"}},
        {"prune": {"first_order": False}},
        {"fisher": {"blocks": "row"}},
        {"fisher": {"damping_unit": "mean_diagonal", "damping": 0.1}},
        {"calibrate": {"gradients": "vmap"}},
    ],
    ids=str,
)
def test_every_way_to_prune_reaches_the_sparsity(project, change):
    project.recipe["recover"] = {"epochs": 0}
    assert project.run().exit_code == 0
    before = load_file(project.output / "model.safetensors")
    for section, keys in change.items():
        project.recipe[section] = project.recipe.get(section, {}) | keys

    result = project.run()

    assert result.exit_code == 0, result.output
    after = load_file(project.output / "model.safetensors")
    changed = any(not torch.allclose(before[name], after[name]) for name in before)
    assert changed == ("vmap" not in str(change))


def test_first_order_lowers_the_loss_on_the_held_out_samples(project):
    project.recipe["prune"] |= {"first_order": True, "sparsity": 0.8, "steps": 3}
    project.run("--set", "validate.gates.min_sparsity=null")

    manifests = (project.output / ".cache").glob("prune-*/*/manifest.json")
    steps = [json.loads(manifest.read_text())["facts"] for manifest in manifests]

    assert len(steps) == 3
    assert any(step["step_size"] > 0 for step in steps)


def test_sequential_selection_needs_blocks(project):
    project.recipe["prune"]["selection"] = "sequential"
    for extra in ([], ["--dry-run"]):
        result = project.run("--set", "fisher.block_size=full", *extra)
        assert result.exit_code == 2
        assert "(prune.selection): sequential needs fisher.block_size" in result.output
        assert not project.output.exists()


def test_labels_of_the_model_need_none_of_the_data(project):
    project.recipe["calibrate"]["labels"] = "model"
    project.recipe["recover"] = {"epochs": 0}
    assert project.run().exit_code == 0
    before = load_file(project.output / "model.safetensors")
    with np.load(project.folder / "train.npz") as data:
        x = data["x"]
    np.savez(project.folder / "train.npz", x=x)

    result = project.run()

    assert result.exit_code == 0, result.output
    after = load_file(project.output / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    refused = project.run("--set", "calibrate.labels=true")
    assert refused.exit_code == 2
    assert "must hold an array 'y'" in refused.output


def test_regression_is_calibrated_without_labels(project):
    project.recipe["task"] = {
        "loss": "net.py:loss",
        "metric": "net.py:error",
        "direction": "minimize",
    }
    with (project.folder / "net.py").open("a") as file:
        file.write(
            "def loss(outputs, targets):\n"
            "    return (outputs[:, 0] - targets).square().mean()\n"
            "def error(outputs, targets):\n"
            "    return (outputs[:, 0] - targets).square()\n"
        )
    project.recipe["calibrate"]["labels"] = "model"
    project.recipe["validate"]["gates"] = {"min_sparsity": 0.5}

    assert project.run().exit_code == 0


def test_magnitude_needs_no_gradients(project, frozen_stages):
    frozen_stages(calibrate)
    project.recipe["prune"] = {"sparsity": 0.5, "method": "magnitude", "scope": "layerwise"}

    assert project.run().exit_code == 0

    dense, masks = load_file(project.model), load_file(project.output / "masks.safetensors")
    for name, mask in masks.items():
        assert dense[name][mask].abs().min() >= dense[name][~mask].abs().max()
        assert (~mask).sum() == mask.sum()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "mfac"])
def test_no_optimizer_brings_removed_weights_back(project, optimizer):
    project.recipe["recover"] = {
        "epochs": 3,
        "optimizer": optimizer,
        "window": {"num_gradients": 8},
    }
    project.run()

    (manifest,) = (project.output / ".cache" / "recover").glob("*/manifest.json")
    losses = json.loads(manifest.read_text())["facts"]["loss_by_epoch"]
    weights = load_file(project.output / "model.safetensors")
    masks = load_file(project.output / "masks.safetensors")

    assert len(losses) == 3
    for name, mask in masks.items():
        assert not weights[name][~mask].any()


def test_overrides_and_exclusions_reach_the_masks(project):
    project.recipe["prune"] = {"sparsity": 0.5, "overrides": {"3": 0.25}}
    project.run("--set", "validate.gates.min_sparsity=null")

    masks = load_file(project.output / "masks.safetensors")

    assert (~masks["3.weight"]).float().mean() == 0.25
    assert (~masks["0.weight"]).float().mean() == 0.5


def test_too_few_samples_for_the_gradients_is_an_error(project):
    result = project.run("--set", "calibrate.num_gradients=81")

    assert result.exit_code == 2
    assert "calibrate.num_gradients" in result.output
    assert "160 calibration samples" in result.output
    assert not project.output.exists()


def test_a_sample_that_breaks_the_gradient_is_named(project):
    (project.folder / "loss.py").write_text(
        "from torch.nn.functional import cross_entropy\n"
        "def loss(outputs, targets):\n"
        "    return cross_entropy(outputs, targets) / (targets != 2).all()\n"
    )
    project.recipe["task"] = {"loss": "loss.py:loss"}

    result = project.run()

    assert result.exit_code == 2
    assert "NaN or infinity in 0.weight for the calibration samples [" in result.output
    assert not _files(project)


def test_memory_that_does_not_suffice_is_an_error(project):
    result = project.run("--set", "run.memory_budget=10KB")

    assert result.exit_code == 2
    assert "run.memory_budget" in result.output
    assert not project.output.exists()


def test_gradients_of_twice_the_memory_budget_live_on_disk(project):
    """8 gradients of 96 weights take 3 kB; the same numbers come out, and no file stays."""
    how = {"fisher.block_size": "full", "calibrate.num_gradients": 8, "prune.steps": 2}
    flags = [flag for key, value in how.items() for flag in ("--set", f"{key}={value}")]
    weights = []
    for budget in ("1GB", "1.5KB"):
        flags += ["--set", f"run.memory_budget={budget}"]
        result = project.run("--verbose", *flags)
        assert result.exit_code == 0, result.output
        weights.append(load_file(project.output / "model.safetensors"))
        assert ("gradients on disk" in result.output) == (budget == "1.5KB")
        assert not list(project.output.rglob("window-*"))
        shutil.rmtree(project.output)
    assert "on disk" in project.run(*flags, "--dry-run").output
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)


def test_gradients_grow_with_sparsity_and_the_report_says_how_many(project):
    project.recipe["prune"] |= {"steps": 3, "schedule": "linear"}
    project.recipe["calibrate"]["num_gradients"] = {0: 20, 0.3: 40}
    assert "gradients: 20, 40 from step 3 on" in project.run("--dry-run").output

    result = project.run("--verbose")

    assert result.exit_code == 0, result.output
    report = json.loads((project.output / "report.json").read_text())
    assert report["sparsity"]["gradients"] == [20, 20, 40]
    assert "from 40 gradients" in result.output


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_the_samples_must_suffice_for_the_step_with_most_gradients(project, arguments):
    project.recipe["prune"]["steps"] = 2
    project.recipe["calibrate"]["num_gradients"] = {0: 20, 0.1: 81}
    result = project.run(*arguments)
    assert result.exit_code == 2
    assert "calibrate.num_gradients x" in result.output
    assert "81 x 2 = 162" in result.output
    assert not project.output.exists()


def test_the_memory_must_suffice_for_the_step_with_most_gradients(project):
    """96 weights: 10 gradients as 32-bit floats take 3.8 kB, and 40 of them 15.4 kB."""
    project.recipe["prune"]["steps"] = 2
    project.recipe["fisher"]["block_size"] = "full"
    flags = ("--dry-run", "--set", "run.memory_budget=20KB", "--set")
    fits = project.run(*flags, "calibrate.num_gradients=10").output
    assert "on disk" not in fits
    more = project.run(*flags, "calibrate.num_gradients={0: 10, 0.1: 40}").output
    assert "on disk" in more


def test_a_foreign_directory_is_refused_and_left_alone(project):
    project.output.mkdir()
    (project.output / "model.onnx").write_text("mine")

    result = project.run()

    assert result.exit_code == 2
    assert "holds other files" in result.output
    assert (project.output / "model.onnx").read_text() == "mine"


def test_two_runs_in_one_directory_are_refused(project):
    from mfac_compress.pipeline.run.directory import RunDirectory

    with RunDirectory(project.output).locked():
        result = project.run()

    assert result.exit_code == 2
    assert "Another run is writing" in result.output


def test_a_terminated_stage_is_named_like_an_interrupted_one(project, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(prune, "prune", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))

    result = project.run()

    assert result.exit_code == 3
    assert "stage prune-00: interrupted" in result.output
    assert signal.getsignal(signal.SIGTERM) == before


def test_results_that_can_not_all_be_written_are_taken_away(project, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("mfac_compress.pipeline.compression.markdown", fail)
    result = project.run()

    assert result.exit_code == 3
    assert "stage report: OSError: No space left on device" in result.output
    assert not _files(project)


def test_a_directory_that_can_not_be_used_is_refused_before_anything_is_loaded(project):
    project.output.write_text("a file")
    result = project.run(model=project.folder / "none.pt")
    assert "-o must be a directory" in result.output


def test_the_audit_is_in_the_order_of_the_model(project):
    (project.folder / "net.py").write_text(
        "from collections import OrderedDict\nfrom torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(OrderedDict(b=nn.Linear(6, 8), a=nn.Linear(8, 3)))\n"
    )
    state = {"b.weight": (8, 6), "b.bias": (8,), "a.weight": (3, 8), "a.bias": (3,)}
    model = project.folder / "own.pt"
    torch.save({name: torch.randn(shape) for name, shape in state.items()}, model)
    project.run("-q", model=model)

    report = json.loads((project.output / "report.json").read_text())
    audit = report["variants"]["sparse"]["audit"]
    assert [tensor["name"] for tensor in audit] == ["b.weight", "a.weight"]


def test_a_program_of_torch_export_is_compressed_without_warnings(project):
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    batch = torch.export.Dim("batch")
    program = torch.export.export(net.eval(), (torch.ones(2, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(program, project.folder / "net.pt2")
    del project.recipe["model"]
    project.recipe["validate"]["gates"] = {}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = project.run(model=project.folder / "net.pt2")

    assert result.exit_code == 0, result.output


def test_choices_need_held_out_samples(project):
    result = project.run("--set", "calibrate.holdout=0")
    assert result.exit_code == 2
    assert "calibrate.holdout" in result.output
    assert not project.output.exists()


def test_statistics_of_augmented_samples_need_images(project):
    result = project.run("--set", "data.augment={flip: true}", "--set", "recover.epochs=0")
    assert result.exit_code == 2
    assert "data.augment needs batches of images" in result.output
    assert not project.output.exists()


def test_batch_norm_does_not_train_on_single_samples(project):
    result = project.run("--set", "recover.batch_size=1")
    assert result.exit_code == 2
    assert "recover.batch_size" in result.output


def test_recovery_that_diverges_names_the_learning_rate(project):
    result = project.run("--set", "recover.lr=1e30")
    assert result.exit_code == 3
    assert "stage recover" in result.output
    assert "Lower recover.lr" in result.output
    assert not _files(project) & set(RESULTS)


def test_the_same_recipe_gives_the_same_weights(project):
    weights = []
    for name in ("one", "two"):
        project.output = project.folder / name
        assert project.run("-q").exit_code == 0
        weights.append(load_file(project.output / "model.safetensors"))
    first, second = weights
    assert all(torch.equal(first[name], second[name]) for name in first)
