"""A recovery in a run: what it is trained on, and where it goes on after a kill."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.checkpoint import Checkpoints
from mfac_compress.pipeline.stages import recover
from mfac_compress.pipeline.stages.training import Training


def test_a_run_that_ends_in_an_epoch_goes_on_from_the_one_before(project, monkeypatch):
    project.recipe["prune"] |= {"steps": 2, "epochs_between": 2}
    project.recipe["recover"] = {"epochs": 3}
    undisturbed, project.output = project.output, project.folder / "killed"
    assert project.run("-q").exit_code == 0
    whole, project.output = project.output, undisturbed
    trained, epoch_of = [], Training._epoch

    def dies(self, epoch, *arguments):
        if len(trained) in (1, 4):
            trained.append("killed")
            raise OSError("killed")
        trained.append(epoch)
        return epoch_of(self, epoch, *arguments)

    monkeypatch.setattr(Training, "_epoch", dies)
    for stage in ("recover-00", "recover"):
        assert f"stage {stage}: OSError: killed" in project.run("-q").output
    result = project.run("-v")

    assert result.exit_code == 0, result.output
    assert trained == [0, "killed", 1, 0, "killed", 1, 2]
    for name in ("model.safetensors", "masks.safetensors"):
        one, other = (load_file(folder / name) for folder in (whole, project.output))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "model.onnx").read_bytes() == (project.output / "model.onnx").read_bytes()
    assert not list((project.output / ".cache").glob("*/.unfinished*"))


def test_without_epochs_there_is_no_checkpoint(project, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", None)
    assert project.run("-q", "--set", "recover.epochs=1").exit_code == 0


def _without_labels(project):
    """Data whose only targets are those of validation."""
    with np.load(project.folder / "train.npz") as arrays:
        np.savez(project.folder / "unlabelled.npz", x=arrays["x"])
    splits = project.recipe["data"]["splits"]
    splits["calibration"] = {"path": "unlabelled.npz", "rows": [0, 200]}
    splits["recovery"] = {"path": "unlabelled.npz", "rows": [200, 400]}
    project.recipe["calibrate"]["labels"] = "model"


@pytest.mark.parametrize("split", ["recovery", "calibration"])
def test_the_dense_model_teaches_without_any_labels(project, split):
    _without_labels(project)
    if split == "calibration":
        del project.recipe["data"]["splits"]["recovery"]
    project.recipe["prune"]["sparsity"] = 0.7
    project.recipe["recover"] = {"epochs": 2, "split": split, "distill": {"layers": ["1"]}}
    result = project.run()
    assert result.exit_code == 0, result.output
    masks = load_file(project.output / "masks.safetensors")
    pruned = load_file(project.output / "model.safetensors")
    assert not any(pruned[name][~mask].any() for name, mask in masks.items())


def test_without_labels_a_share_of_the_tasks_loss_is_refused(project):
    _without_labels(project)
    result = project.run("--dry-run", "--set", "recover.distill={weight: 0.9}")
    assert result.exit_code == 2
    assert "data.splits.recovery" in result.output
    assert project.run("--dry-run", "--set", "recover.distill={weight: 1}").exit_code == 0


def test_no_held_out_sample_is_trained_on(module_project):
    """By them epochs are judged."""
    changes = ["recover.split=calibration", "data.splits.recovery=null"]
    recipe = load_recipe(module_project.write_recipe(), changes)
    inputs = load_inputs(recipe, module_project.model)
    draws, samples = inputs.calibration.draws, inputs.training
    batches = list(samples.shuffled(50, torch.Generator()))
    (pool,) = (batch.inputs for batch in inputs.calibration.batches(200, draws.pool))
    seen = torch.cat([batch.inputs for batch in batches])
    assert len(samples) == len(seen) == len(pool) == 160
    assert torch.equal(*(torch.sort(x, dim=0).values for x in (seen, pool)))
    assert inputs.data.recovery is None


def test_the_dry_run_says_how_the_model_is_trained(project):
    changes = ("prune.steps=2", "prune.epochs_between=1", "recover.distill={weight: 0.9}")
    result = project.run("--dry-run", *(part for each in changes for part in ("--set", each)))
    assert (
        "recovery: 1 epoch(s) after each step before, 1 epoch(s) at the end, on 200 recovery "
        "samples, taught by the dense model (kl, weight 0.9); kept is the epoch nearest to the "
        "dense model on held-out calibration samples" in result.output
    )
    none = project.run("--dry-run", "--set", "recover.epochs=0").output
    assert "recovery: none (recover.epochs)" in none


def test_of_the_epochs_the_nearest_to_the_dense_model_is_kept_and_said(project):
    project.recipe["recover"] = {"epochs": 4, "lr": 3.0, "distill": {}}
    result = project.run("--json")
    recovery = json.loads(result.stdout)["recovery"]
    divergence = recovery["divergence"]
    assert len(divergence) == 5
    assert recovery["kept_epoch"] == min(range(5), key=divergence.__getitem__)
    text = (project.output / "report.md").read_text()
    assert f"recover: epoch {recovery['kept_epoch']} of 4 kept; divergence from dense" in text

    project.recipe["recover"]["keep"] = "last"
    recovery = json.loads(project.run("--json").stdout)["recovery"]
    assert (recovery["kept_epoch"], recovery["divergence"]) == (4, [])


@pytest.mark.parametrize(
    ("distill", "task", "temperature"),
    [
        ({}, "cross_entropy", 4.0),
        ({"temperature": 2.0, "weight": 0.5}, "cross_entropy", 2.0),
        ({"loss": "mse"}, "cross_entropy", 1.0),
        ({}, "none", 1.0),
        (None, "cross_entropy", 1.0),
    ],
)
def test_epochs_are_chosen_at_the_temperature_of_the_training(distill, task, temperature):
    section = RecoverSection(distill=distill)
    calibration = SimpleNamespace(task=SimpleNamespace(loss_name=task))
    divergence = recover.divergence_of(SimpleNamespace(module=None), section, calibration)
    assert divergence.temperature == temperature


def test_no_choice_of_a_training_looks_at_validation(project, monkeypatch):
    """Samples of validation are not even read before the model is recovered."""
    read, batches = [], Split.batches

    def note(self, *arguments, **options):
        read.append(self.name)
        return batches(self, *arguments, **options)

    train = recover._Recovery.train

    def watched(self, samples):
        read.clear()
        monkeypatch.setattr(Split, "batches", note)
        recovered = train(self, samples)
        monkeypatch.setattr(Split, "batches", batches)
        return recovered

    monkeypatch.setattr(recover._Recovery, "train", watched)
    project.recipe["recover"] = {
        "epochs": 2,
        "lr": "auto",
        "ema": 0.5,
        "distill": {},
        "patience": 1,
    }
    result = project.run("-q")
    assert result.exit_code == 0, result.output
    assert set(read) == {"calibration", "recovery"}


def test_without_held_out_samples_nothing_can_be_chosen(project):
    given = ("--dry-run", "--set", "calibrate.holdout=0", "--set", "prune.first_order=false")
    given += ("--set", "recover.batchnorm=never")
    assert project.run(*given).exit_code == 0
    for choice in ("recover.keep=best", "recover.distill={}", "recover.lr=auto"):
        result = project.run(*given, "--set", choice)
        assert result.exit_code == 2
        assert "must leave at least one sample for the choices" in result.output


def test_the_learning_rate_is_the_one_that_came_nearest(project, monkeypatch):
    project.recipe["prune"]["sparsity"] = 0.8
    project.recipe["recover"] = {"epochs": 2, "lr": "auto", "distill": {}}
    dies, epoch_of = [True], Training._epoch

    def killed(self, epoch, *arguments):
        if epoch == 1 and dies:
            raise OSError("killed")
        return epoch_of(self, epoch, *arguments)

    monkeypatch.setattr(Training, "_epoch", killed)
    assert "killed" in project.run("-q").output
    dies.clear()
    monkeypatch.setattr(recover, "try_rates", None)  # what was tried is kept
    recovery = json.loads(project.run("--json").stdout)["recovery"]
    tried = {one["lr"]: one["divergence"] for one in recovery["tried"]}
    assert len(tried) == 5
    assert recovery["lr"] == min(tried, key=tried.__getitem__)
    assert "best of 5" in (project.output / "report.md").read_text()
