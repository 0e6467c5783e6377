"""Pruning by the inputs of layers: without labels, by any allocation, in reproducible bytes."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mfac_compress.mfac.layerwise import LayerGraph
from mfac_compress.mfac.units import Units, Unstructured
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.run.runner import check_stages
from mfac_compress.pipeline.schedule import plan_stages
from mfac_compress.pipeline.stages import prune_layers

LAYERWISE = {"method": "layerwise", "sparsity": 0.6, "layerwise": {"samples": 100}}


def _run(project, name, **prune):
    project.recipe["prune"] = {**LAYERWISE, **prune}
    project.recipe["recover"] = {}
    project.output = project.folder / name
    result = project.run()
    assert result.exit_code == 0, result.output
    return load_file(project.output / "masks.safetensors")


def _removed(masks):
    return {name: int((~mask).sum()) for name, mask in masks.items()}


def test_no_label_is_needed_and_the_same_share_goes_everywhere(project):
    with np.load(project.folder / "train.npz") as arrays:
        np.savez(project.folder / "unlabelled.npz", x=arrays["x"][:200])
    project.recipe["data"]["splits"]["calibration"] = {"path": "unlabelled.npz"}
    masks = _run(project, "one", steps=2)

    assert _removed(masks) == {"0.weight": 58, "3.weight": 29}  # 60% of 96 and 48, rounded up
    weights = load_file(project.output / "model.safetensors")
    assert not any(weights[name][~mask].any() for name, mask in masks.items())
    _run(project, "two", steps=2)
    one, two = (
        (project.folder / name / "model.safetensors").read_bytes() for name in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize("allocation", ["errors", "fisher"])
def test_tensors_may_compete(project, allocation):
    removed = _removed(_run(project, "out", allocation=allocation, steps=2))
    assert sum(removed.values()) == 87  # 60% of 144, rounded up
    assert removed != {"0.weight": 58, "3.weight": 29}


def test_the_fisher_says_how_many_and_the_layers_which(project):
    mfac = _run(project, "mfac", method="mfac", first_order=False, layerwise={})
    layerwise = _run(project, "layerwise", allocation="fisher")
    assert _removed(mfac) == _removed(layerwise)
    assert any(not torch.equal(mfac[name], layerwise[name]) for name in mfac)


@pytest.fixture(scope="module")
def load(module_project):
    def of(*changes):
        module_project.recipe["prune"] = LAYERWISE
        recipe = load_recipe(module_project.write_recipe(), changes)
        return recipe, load_inputs(recipe, module_project.model)

    return of


def test_too_few_samples_are_refused(load):
    stages = plan_stages(*load("prune.layerwise.samples=161"))
    with pytest.raises(InputError, match=r"prune\.layerwise\.samples.* must not exceed the 160"):
        check_stages(stages, Ranks())


def test_moments_beyond_the_memory_are_refused_before_the_work(load):
    stages = plan_stages(*load("run.memory_budget=20KB"))
    with pytest.raises(InputError, match=r"prune\.method.* hold .* of 2 layers\. Got 20\.0 kB"):
        check_stages(stages, Ranks())


def test_a_model_that_cannot_be_traced_is_refused(load, monkeypatch):
    def no_graph(*_):
        raise ValueError("The model must be one graph. Got a branch.")

    monkeypatch.setattr(LayerGraph, "trace", no_graph)
    with pytest.raises(InputError, match=r"prune\.method.*: must be mfac or magnitude .*a branch"):
        load()


def test_units_of_each_tensor_are_counted_from_a_mask():
    layout, units = Unstructured().resolve({"a": (4,), "b": (6,)}, 0.5)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=torch.bool)
    own, removed = prune_layers._of_each_tensor(mask, layout, units)
    assert isinstance(own, Units)
    assert removed.tolist() == [1, 4]
    assert own.competition.tolist() == [0] * 4 + [1] * 6
