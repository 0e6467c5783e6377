"""A run goes on from masks and weights of elsewhere, judged against the dense model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mfac_compress.mfac import MaskHooks
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.run.stage import digest_of
from mfac_compress.pipeline.schedule import plan_stages

GIVEN = {"masks": "masks.safetensors", "weights": "trained.safetensors"}


def _train(net, masks, data):
    """A loop of one's own."""
    x, y = (torch.from_numpy(data[name][200:]) for name in "xy")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    hooks = MaskHooks.load(masks, net).attach(optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    hooks.check()


@pytest.fixture
def project(project):
    """A project with masks and trained weights beside its model."""
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    net.load_state_dict(load_file(project.model))
    masks = {
        name: net.get_parameter(name).abs() > net.get_parameter(name).abs().median()
        for name in ("0.weight", "3.weight")
    }
    save_file(masks, project.folder / GIVEN["masks"])
    _train(net, project.folder / GIVEN["masks"], np.load(project.folder / "train.npz"))
    save_file(net.state_dict(), project.folder / GIVEN["weights"])
    project.recipe |= {"prune": dict(GIVEN), "recover": {"epochs": 0}}
    return project


def _change(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_the_trained_weights_ship_and_the_dense_model_stays_the_reference(project):

    def multiply(tensors):
        """By a mask, which leaves -0."""
        masks = load_file(project.folder / GIVEN["masks"])
        tensors["0.weight"][~masks["0.weight"]] = -0.0

    _change(project.folder / GIVEN["weights"], multiply)
    result = project.run("-q", "--set", "recover.batchnorm=never")

    assert result.exit_code == 0, result.output
    report = json.loads((project.output / "report.json").read_text())
    trained, masks = (load_file(project.folder / name) for name in reversed(GIVEN.values()))
    shipped = load_file(project.output / "model.safetensors")
    assert all(torch.equal(shipped[name], trained[name]) for name in trained)
    kept = load_file(project.output / "masks.safetensors")
    assert all(torch.equal(kept[name], masks[name]) for name in masks)
    assert report["variants"]["sparse"]["sparsity"] == pytest.approx(0.5)
    assert [each["negative_zeros"] for each in report["variants"]["sparse"]["audit"]] == [0, 0]
    assert report["sparsity"]["pattern"] == "as in masks.safetensors"
    assert "were trained outside of this run" in " ".join(report["warnings"])
    stages = {folder.name for folder in (project.output / ".cache").iterdir() if folder.is_dir()}
    assert "calibrate" not in stages
    manifest = json.loads((project.output / "manifest.json").read_text())
    assert len(manifest["prune_weights_sha256"]) == 64


def test_a_drop_of_the_trained_weights_is_seen(project):
    """They are the dense model's no more: a gate compares with MODEL."""

    def spoil(tensors):
        tensors["3.bias"] += torch.tensor([100.0, 0, 0])

    _change(project.folder / GIVEN["weights"], spoil)
    result = project.run("-q", "--set", "recover.batchnorm=never")
    assert result.exit_code == 1, result.output
    assert "max_metric_drop" in result.output


def test_recovery_keeps_the_masks(project):
    assert project.run("-q", "--set", "recover.epochs=1").exit_code == 0
    masks = load_file(project.folder / GIVEN["masks"])
    shipped = load_file(project.output / "model.safetensors")
    assert not any(shipped[name][~mask].any() for name, mask in masks.items())
    trained = load_file(project.folder / GIVEN["weights"])
    assert not torch.equal(shipped["0.weight"], trained["0.weight"])


def test_weights_that_are_not_masked_are_counted_and_left_alone(project):
    def revive(tensors):
        masks = load_file(project.folder / GIVEN["masks"])
        tensors["3.weight"][~masks["3.weight"]] = 1e-30

    _change(project.folder / GIVEN["weights"], revive)
    for arguments in (["--dry-run"], ["-q"]):
        result = project.run(*arguments)
        assert result.exit_code == 2
        assert "has 24 that are not: 24 in 3.weight" in result.output
    assert not (project.output / "model.onnx").exists()


def test_a_pruned_model_cannot_pass_for_the_dense_one(project):
    result = project.run(model=project.folder / GIVEN["weights"])
    assert result.exit_code == 2
    assert "MODEL must be the dense model" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: masks.update({"5.weight": ~masks["3.weight"]}), "the model has no such"),
        (lambda masks: masks.update({"3.weight": masks["3.weight"].T.contiguous()}), "[16, 3] for"),
        (lambda masks: masks.update({"0.bias": torch.ones(16, dtype=torch.bool)}), "(a bias)"),
        (lambda masks: [mask.zero_() for mask in masks.values()], "masks must keep a weight"),
    ],
    ids=["no such tensor", "another shape", "a bias", "nothing kept"],
)
def test_masks_that_do_not_fit_are_refused(project, change, message):
    _change(project.folder / GIVEN["masks"], change)
    result = project.run("--dry-run")
    assert result.exit_code == 2
    assert "prune.masks" in result.output
    assert message in result.output


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_of_another_model_are_refused(project, suffix):
    path = project.folder / f"trained.{suffix}"
    weights = {"0.weight": torch.zeros(2, 6)}
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    project.recipe["prune"]["weights"] = path.name
    result = project.run("--dry-run")
    assert result.exit_code == 2
    assert "prune.weights" in result.output
    assert "must fit the model" in result.output


def test_weights_that_are_not_finite_are_refused(project):
    _change(project.folder / GIVEN["weights"], lambda w: w["3.bias"].fill_(float("nan")))
    result = project.run("--dry-run")
    assert result.exit_code == 2
    assert "NaN or Inf in 1 of trained.safetensors: 3.bias" in result.output


@pytest.mark.parametrize("name", [*GIVEN])
def test_a_missing_file_is_named(project, name):
    (project.folder / GIVEN[name]).unlink()
    result = project.run("--dry-run")
    assert result.exit_code == 2
    assert f"(prune.{name}) must be a file that exists" in result.output


def test_a_weight_whose_zeros_nobody_would_count_is_refused(project):
    """The second output takes no part: the file that ships may not hold it."""
    (project.folder / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), "
        "nn.Linear(16, 3), nn.Linear(3, 3))\n"
        "    def forward(self, x):\n"
        "        return self[3](self[2](self[1](self[0](x))))\n"
        "def net():\n"
        "    return Net()\n"
    )
    spare = {"4.weight": torch.eye(3) + 1, "4.bias": torch.zeros(3)}
    _change(project.model, lambda w: w.update(spare))
    mask = torch.eye(3, dtype=torch.bool)
    spare["4.weight"] = spare["4.weight"] * mask
    _change(project.folder / GIVEN["weights"], lambda w: w.update(spare))
    _change(project.folder / GIVEN["masks"], lambda w: w.update({"4.weight": mask}))
    result = project.run("--dry-run")
    assert result.exit_code == 2
    assert "1 in masks.safetensors are not: 4.weight (takes no part" in result.output


def _keys(project):
    """Cache keys that the stages before any other have, by what the recipe gives."""
    recipe = load_recipe(project.write_recipe())
    stages = plan_stages(recipe, load_inputs(recipe, project.model))
    return {stage.name: digest_of(stage.reads) for stage in stages}


def test_the_content_of_both_files_is_in_the_key(project):
    before = _keys(project)

    def more_zeros(tensors):
        tensors["0.weight"][0] = 0

    _change(project.folder / GIVEN["weights"], more_zeros)
    after = _keys(project)
    assert after["prune-00"] != before["prune-00"]

    def more_removed(tensors):
        tensors["0.weight"][0] = False

    _change(project.folder / GIVEN["masks"], more_removed)
    assert _keys(project)["prune-00"] != after["prune-00"]


@pytest.mark.parametrize("what", ["MODEL", "prune.masks", "prune.weights", "RECIPE"])
def test_a_run_does_not_remove_what_it_is_to_read(project, what):
    """All of it may lie in the directory of the run that pruned."""
    recipe = project.write_recipe()
    place, file = {
        "MODEL": ("model.safetensors", project.model),
        "prune.masks": ("masks.safetensors", project.folder / GIVEN["masks"]),
        "prune.weights": ("model.safetensors", project.folder / GIVEN["weights"]),
        "RECIPE": ("recipe.resolved.yaml", recipe),
    }[what]
    (project.output / ".cache").mkdir(parents=True)
    inside = file.rename(project.output / place)
    arguments = ["--set", f"{what}={inside}"] if what.startswith("prune") else []

    result = project.run(
        "-q",
        *arguments,
        model=inside if what == "MODEL" else None,
        recipe=inside if what == "RECIPE" else None,
    )

    assert result.exit_code == 2
    assert f"-o must not be the directory of {what}" in result.output
    assert inside.exists()
