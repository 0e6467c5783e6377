"""A whole recipe runs on an accelerator, each way through the code that computes there."""

import pytest
from safetensors.torch import load_file

from mfac_compress.pipeline.inputs import independence, load
from mfac_compress.pipeline.stages import calibrate

WAYS = {
    "blocks": [],
    "full": ["fisher.block_size=full"],
    "bfloat16": ["fisher.block_size=full", "fisher.window_dtype=bfloat16"],
    "vmap": ["calibrate.gradients=vmap"],
    "labels of the model": ["calibrate.labels=model"],
    "mfac recovers": ["recover.optimizer=mfac", "recover.lr=0.001"],
    "single update": ["prune.update=single", "prune.steps=2"],
}


@pytest.fixture
def computes_there(accelerator, monkeypatch):
    """Make runs use the accelerator; a GPU they find themselves."""
    if accelerator.type == "cuda":
        return

    def load_there(path, device="cpu"):
        """As safetensors does for the devices that it knows."""
        return {name: tensor.to(device) for name, tensor in load_file(path).items()}

    monkeypatch.setitem(independence._TOLERANCE, accelerator.type, 1e-3)
    monkeypatch.setattr(load, "_device", lambda *_: accelerator)
    monkeypatch.setattr(calibrate, "load_file", load_there)


@pytest.mark.usefixtures("computes_there")
@pytest.mark.parametrize("way", WAYS)
def test_a_recipe_on_an_accelerator_ends_as_on_the_cpu(project, way, monkeypatch, tmp_path):
    changes = [part for change in WAYS[way] for part in ("--set", change)]
    result = project.run("-q", *changes)
    assert result.exit_code == 0, result.output
    there = load_file(project.output / "masks.safetensors")

    monkeypatch.undo()
    project.output = tmp_path / "on the cpu"
    result = project.run("-q", *changes, "--set", "run.device=cpu")

    assert result.exit_code == 0, result.output
    here = load_file(project.output / "masks.safetensors")
    differing = sum((here[name] != there[name]).sum().item() for name in here)
    assert differing <= 0.02 * sum(mask.numel() for mask in here.values())
