"""Everything in mfac runs on an accelerator, and gives what it gives on the CPU."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac import MFAC
from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.block_inverse import BlockInverse
from mfac_compress.mfac.fisher import fisher_of, invert
from mfac_compress.mfac.gradients import GradientSource
from mfac_compress.mfac.layout import Layout
from mfac_compress.mfac.masking import MaskHooks
from mfac_compress.mfac.sequential import sequential_saliency
from mfac_compress.mfac.sliding_window import SlidingFisher


def _on_cpu(x):
    return x.detach().to("cpu").double()


def _same(on_device, expected, rtol=1e-4):
    torch.testing.assert_close(_on_cpu(on_device), expected.double(), rtol=rtol, atol=1e-5)


def test_two_devices_do_not_mix(accelerator):
    x = torch.ones(3, device=accelerator)
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="indices should be"):
        torch.ones(3)[x.long()]
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=accelerator, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert (x + 1).sum().item() == 6


@pytest.mark.parametrize("block", [None, 5, 40])
def test_inverses(block, gradients, accelerator):
    G, weights, mask = gradients(40, 45), torch.randn(45), torch.arange(45) % 3 > 0
    expected = invert(fisher_of(G, block), 1e-2)

    found = invert(fisher_of(G.to(accelerator), block), 1e-2)

    w, keep = weights.to(accelerator), mask.to(accelerator)
    _same(found.diagonal(), expected.diagonal())
    _same(found.ihvp(w), expected.ihvp(weights))
    _same(found.joint_update(w, keep), expected.joint_update(weights, mask))
    _same(found.solve_kept(w, keep), expected.solve_kept(weights, mask))
    assert found.element(1, 2) == pytest.approx(expected.element(1, 2), rel=1e-4)
    if isinstance(found, BlockInverse):
        _same(sequential_saliency(w, keep, found), sequential_saliency(weights, mask, expected))


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_gradients(method, accelerator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    batches = [Batch(torch.randn(2, 4), torch.tensor([0, 1])) for _ in range(3)]
    loss = nn.functional.cross_entropy

    shapes = {name: weight.shape for name, weight in net.named_parameters()}

    def rows(module, batches):
        return torch.cat(
            list(GradientSource(module, loss, Layout.row_major(shapes)).rows(batches, method))
        )

    expected = rows(net, batches)
    there = [Batch(*(each.to(accelerator) for each in batch)) for batch in batches]
    _same(rows(net.to(accelerator), there), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1e-2, 1.0, 1e2])
def test_a_sliding_window(length, dtype, gradients, accelerator):
    """Its float32 sums and its float64 ones."""
    here, there = SlidingFisher.empty(4, 30, dtype), SlidingFisher.empty(4, 30, dtype, accelerator)
    for gradient in length * gradients(7, 30).to(dtype).float():
        _same(there.push(gradient.to(accelerator), 1e-3), here.push(gradient, 1e-3))
    mask = torch.arange(30) % 2 > 0
    there.keep_columns(mask.to(accelerator))
    here.keep_columns(mask)
    _same(there.gram, here.gram)


def test_steps_of_the_optimizer_and_its_state(accelerator):
    def trained(device, reload):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(6, 5).to(device))
        mask = (torch.arange(30).reshape(6, 5) % 3 > 0).to(device)
        optimizer = MFAC([weight], num_gradients=3, momentum=0.5)
        with MaskHooks({"w": weight}, {"w": mask}).attach(optimizer):
            for step in range(6):
                gradient = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
                weight.grad = gradient.to(device)
                optimizer.step()
                if reload and step == 2:
                    optimizer.load_state_dict(optimizer.state_dict())
        optimizer.keep({weight: mask})
        return weight

    _same(trained(accelerator, reload=True), trained("cpu", reload=False).detach())
