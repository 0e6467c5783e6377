"""Mixed precision: products in bfloat16, everything that lasts in float32."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import DistillSection
from mfac_compress.pipeline.stages.distillation import Distillation
from mfac_compress.pipeline.stages.objective import Accelerated, Supervised
from mfac_compress.pipeline.stages.shared_batch import backward


def _net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))


def _gradients(net, objective, batch):
    net.zero_grad()
    loss = backward(net, batch, objective, torch.device("cpu"), Ranks())
    return loss, torch.cat([p.grad.double().flatten() for p in net.parameters()])


@pytest.mark.parametrize("taught", [False, True])
def test_gradients_are_float32_and_near_to_those_of_float64(taught):
    net, dense = _net(0), _net(1)
    objective = Supervised(nn.functional.cross_entropy)
    if taught:
        objective = Distillation.of(DistillSection(layers=["0"]), dense, "cross_entropy", None)
    batch = Batch(torch.randn(64, 20), torch.arange(64) % 4)
    loss, found = _gradients(net, Accelerated(objective, bfloat16=True), batch)
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in net.parameters())

    net.double(), dense.double()
    expected_loss, expected = _gradients(
        net, objective, batch._replace(inputs=batch.inputs.double())
    )
    assert loss == pytest.approx(expected_loss, rel=0.02)
    error = ((found - expected).norm() / expected.norm()).item()
    assert 1e-5 < error < 0.02


def test_both_models_compute_in_bfloat16_and_the_loss_is_taken_in_float32():
    net, dense, kinds = _net(0), _net(1), []
    for each in (net, dense):
        each[0].register_forward_hook(lambda _, __, output: kinds.append(output.dtype))
    objective = Distillation.of(DistillSection(layers=["0"]), dense, "cross_entropy", None)
    computed = Accelerated(objective, bfloat16=True).compute(net, torch.randn(8, 20))
    assert kinds == [torch.bfloat16, torch.bfloat16]
    parts = [computed["outputs"], computed["wanted"]]
    parts += [*computed["hidden"]["0"], *computed["wanted_hidden"]["0"]]
    assert {part.dtype for part in parts} == {torch.float32}
    assert objective.loss(computed, ()).dtype == torch.float32


def test_a_run_in_bfloat16_keeps_the_zeros_and_float32_weights(project):
    project.recipe["recover"] = {"epochs": 2, "distill": {}, "precision": "bfloat16"}
    result = project.run()
    assert result.exit_code == 0, result.output
    masks = load_file(project.output / "masks.safetensors")
    pruned = load_file(project.output / "model.safetensors")
    assert {t.dtype for t in pruned.values() if t.is_floating_point()} == {torch.float32}
    assert not any(pruned[name][~mask].any() for name, mask in masks.items())


def test_images_are_given_with_their_channels_last_and_the_same_values():
    net, seen = nn.Conv2d(3, 4, 3), []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, objective = torch.randn(5, 3, 8, 8), Supervised(nn.functional.cross_entropy)
    plain = objective.compute(net, images)
    found = Accelerated(objective, channels_last=True).compute(net, images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain)
    assert torch.equal(*seen)
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in seen] == [False, True]
