"""A run whose channels are put in another order first: the same function, blocks more alike."""

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from mfac_compress.mfac.layerwise import ChannelSet
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe

BLOCKS = {"sparsity": 0.5, "pattern": {"block": 4, "axis": "outputs"}, "permute": True}


def _load(project, *changes, **prune):
    project.recipe["prune"] = {**BLOCKS, **prune}
    return load_inputs(load_recipe(project.write_recipe(), changes), project.model)


def test_the_model_computes_what_it_did_with_blocks_that_are_more_alike(project):
    plain, ordered = _load(project, permute=False), _load(project)
    x = torch.randn(50, 6)
    torch.testing.assert_close(ordered.model.module(x), plain.model.module(x))
    assert ordered.permuted
    assert plain.permuted is None
    assert ordered.model.digest != plain.model.digest
    assert ordered.layers.model is ordered.model

    def largest(inputs):
        squares = inputs.model.module.get_parameter("0.weight").square()
        sums = squares.unflatten(0, (4, 4)).sum(dim=1).flatten()
        return sums.topk(len(sums) // 2).values.sum()

    assert largest(ordered) > 1.01 * largest(plain)


def test_the_order_is_the_same_in_every_run_and_in_all_files(project):
    project.recipe["prune"] = BLOCKS
    files = []
    for name in ("one", "two"):
        project.output = project.folder / name
        result = project.run()
        assert result.exit_code == 0, result.output
        files.append((project.output / "model.safetensors").read_bytes())
    assert files[0] == files[1]

    ordered = _load(project).model.module
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(project.output / "dense.onnx"))
    (got,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(got, ordered(torch.from_numpy(x)).detach(), atol=1e-4)
    masks = load_file(project.output / "masks.safetensors")["0.weight"]
    blocks = masks.unflatten(0, (4, 4))
    assert (blocks == blocks[:, :1]).all()


def test_the_dry_run_says_how_many_channels_move(project):
    project.recipe["prune"] = BLOCKS
    result = project.run("--dry-run")
    assert result.exit_code == 0, result.output
    assert "put beside others that are like them (prune.permute)" in result.output


def test_a_change_of_the_outputs_is_refused(project, monkeypatch):
    def harm(channels, module, order):
        next(module.parameters()).data.mul_(2)

    monkeypatch.setattr(ChannelSet, "reorder", harm)
    with pytest.raises(InputError, match=r"permute\): must be false for this model, which"):
        _load(project)


def test_a_model_that_cannot_be_traced_is_refused(project, monkeypatch):
    def no_graph(*_):
        raise ValueError("The model must be one graph. Got a branch.")

    monkeypatch.setattr("mfac_compress.mfac.layerwise.LayerGraph.trace", no_graph)
    with pytest.raises(InputError, match=r"permute\): must be false .* traced\. .* Got a branch"):
        _load(project)


def test_only_blocks_have_an_order(project):
    with pytest.raises(InputError, match=r"prune\.permute must be false unless prune\.pattern is"):
        _load(project, pattern="unstructured")
