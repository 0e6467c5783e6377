"""A recipe runs on an accelerator, each way through the code that computes there."""

import pytest
from safetensors.torch import load_file

from mfac_compress.pipeline.inputs import independence, load
from mfac_compress.pipeline.stages import calibrate

SHORT = ["calibrate.num_gradients=8", "fisher.block_size=8"]
WAYS = {
    "blocks": [],
    "window in bfloat16": ["fisher.block_size=full", "fisher.window_dtype=bfloat16"],
    "vmap, labels of the model": ["calibrate.gradients=vmap", "calibrate.labels=model"],
    "single update, M-FAC recovers": [
        "fisher.block_size=full",
        "prune.update=single",
        "prune.steps=2",
        "recover.optimizer=mfac",
    ],
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
def test_a_recipe_runs_on_an_accelerator(project, way):
    changes = [part for change in SHORT + WAYS[way] for part in ("--set", change)]

    result = project.run("-q", *changes)

    assert result.exit_code == 0, result.output
    masks = load_file(project.output / "masks.safetensors").values()
    removed = sum((~mask).sum().item() for mask in masks)
    assert removed == sum(mask.numel() for mask in masks) / 2
