"""Blocks fitted to the dense blocks' outputs."""

import copy
import math

import pytest
import torch
from torch import nn

from mfac_compress.mfac.layerwise import LayerGraph, fit_blocks


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.norm1(self.conv1(x)))))


def _convnet():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), _Residual(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 3)
    )


def _mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def _case(model, *shape, count=4, size=8):
    """A dense model, its graph, a copy with half of each matrix removed, masks and batches."""
    torch.manual_seed(0)
    dense = model.double().eval()
    batches = [torch.randn(size, *shape, dtype=torch.float64) for _ in range(count)]
    graph = LayerGraph.trace(dense, batches[0])
    module = copy.deepcopy(dense)
    parameters = dict(module.named_parameters())
    masks = {name: torch.rand(parameters[name].shape) > 0.5 for name in graph.layers}
    for name, mask in masks.items():
        parameters[name].data.masked_fill_(~mask, 0)
    return dense, graph, module, masks, batches


def _by_hand(dense, module, masks, batches, spans, epochs, lr):
    """Each part of a sequential model by Adam, on one batch, its gradients masked."""
    (x,) = batches
    wanted = x
    for start, stop in spans:
        part, target = module[start:stop], dense[start:stop]
        with torch.no_grad():
            wanted = target(wanted)
        parameters = [(p, masks.get(name)) for name, p in part.named_parameters()]
        optimizer = torch.optim.Adam(part.parameters(), lr=lr)
        for step in range(epochs):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / epochs)) / 2
            loss = (part(x) - wanted).square().mean() / wanted.var(correction=0)
            optimizer.zero_grad()
            loss.backward()
            for parameter, mask in parameters:
                if mask is not None:
                    parameter.grad.masked_fill_(~mask, 0)
            optimizer.step()
        with torch.no_grad():
            x = part(x)


@pytest.mark.parametrize("fixed", [True, False])
def test_each_block_is_fitted_on_what_the_fitted_blocks_before_it_give(fixed):
    dense, graph, module, masks, batches = _case(_mlp(), 6, count=1, size=50)
    by_hand = copy.deepcopy(module)
    spans = [(0, 2), (2, 4), (4, 5)]
    _by_hand(dense, by_hand, masks, batches, spans, epochs=20, lr=0.01)
    fit_blocks(module, dense, graph, masks, batches, epochs=20, lr=0.01, fixed=fixed)
    for got, expected in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_successive_blocks_may_be_fitted_as_one():
    dense, graph, module, masks, batches = _case(_mlp(), 6, count=1, size=50)
    by_hand = copy.deepcopy(module)
    _by_hand(dense, by_hand, masks, batches, [(0, 4), (4, 5)], epochs=20, lr=0.01)
    fit_blocks(module, dense, graph, masks, batches, epochs=20, lr=0.01, together=2)
    for got, expected in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_outputs_come_closer_and_zeros_and_buffers_stay():
    dense, graph, module, masks, batches = _case(_convnet(), 2, 10, 10)
    before = copy.deepcopy(module.state_dict())
    x = torch.cat(batches)
    error = (module(x) - dense(x)).square().mean()
    fit_blocks(module, dense, graph, masks, batches, epochs=20, lr=0.01)
    assert (module(x) - dense(x)).square().mean() < error / 4
    after = module.state_dict()
    for name, mask in masks.items():
        removed = after[name][~mask]
        assert not removed.any()
        assert not removed.signbit().any()
        assert not torch.equal(after[name], before[name])
    for name in (name for name, _ in module.named_buffers()):
        assert torch.equal(after[name], before[name])
    assert all(parameter.grad is None for parameter in module.parameters())


def test_frozen_parameters_and_those_of_several_blocks_stay():
    model = _mlp()
    model[4].weight.requires_grad_(False)
    model[2].bias = model[0].bias
    dense, graph, module, masks, batches = _case(model, 6)
    before = copy.deepcopy(module.state_dict())
    fit_blocks(module, dense, graph, masks, batches)
    changed = {n for n, tensor in module.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == {"0.weight", "2.weight", "4.bias"}


def test_an_exact_block_stays():
    dense, graph, module, masks, batches = _case(_convnet(), 2, 10, 10)
    module.load_state_dict(dense.state_dict())
    last = {"5.weight": masks["5.weight"]}
    module[5].weight.data.masked_fill_(~last["5.weight"], 0)
    fit_blocks(module, dense, graph, last, batches)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, dense.state_dict()[name]) == (name not in ("5.weight", "5.bias"))


def test_a_fit_that_makes_a_block_worse_is_undone():
    dense, graph, module, masks, batches = _case(_mlp(), 6)
    before = copy.deepcopy(module.state_dict())
    fit_blocks(module, dense, graph, masks, batches, lr=100.0)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_activations_may_be_kept_in_half_precision():
    dense, graph, module, masks, batches = _case(_convnet(), 2, 10, 10)
    exact = copy.deepcopy(module)
    fit_blocks(exact, dense, graph, masks, batches)
    fit_blocks(module, dense, graph, masks, batches, storage=torch.float16)
    for got, expected in zip(module.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def test_inputs_may_differ_in_every_pass():
    dense, graph, module, masks, _ = _case(_mlp(), 6)
    generator = torch.Generator().manual_seed(0)

    class Fresh:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(torch.randn(3, 40, 6, generator=generator, dtype=torch.float64))

    fresh, x = Fresh(), torch.randn(200, 6, dtype=torch.float64)
    error = (module(x) - dense(x)).square().mean()
    fit_blocks(module, dense, graph, masks, fresh, epochs=30, lr=0.01, fixed=False)
    assert fresh.passes == 3 * (30 + 2)
    assert (module(x) - dense(x)).square().mean() < error / 2


class _Masked(nn.Module):
    """An attention mask goes to every layer, beside the one tensor between the layers."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.first = nn.Linear(8, 8)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, padding):
        return self.layers(self.first(x), src_key_padding_mask=padding)


def test_inputs_that_every_block_needs_reach_it():
    torch.manual_seed(0)
    dense = _Masked().eval()
    inputs = {"x": torch.randn(6, 5, 8), "padding": torch.arange(5).expand(6, 5) > 3}
    graph = LayerGraph.trace(dense, inputs)
    assert len(graph.blocks) == 3
    module = copy.deepcopy(dense)
    parameters = dict(module.named_parameters())
    masks = {name: torch.rand(parameters[name].shape) > 0.3 for name in graph.layers}
    for name, mask in masks.items():
        parameters[name].data.masked_fill_(~mask, 0)
    wanted = graph.run(dense, inputs)[0]
    error = (graph.run(module, inputs)[0] - wanted).square().mean()
    fit_blocks(module, dense, graph, masks, [inputs], epochs=40, lr=0.01)
    assert (graph.run(module, inputs)[0] - wanted).square().mean() < error / 4


def test_processes_that_share_the_samples_find_what_one_finds(on_all_ranks):
    dense, graph, module, masks, batches = _case(_mlp(), 6, count=1, size=30)
    alone = copy.deepcopy(module)
    fit_blocks(alone, dense, graph, masks, batches)
    parts = batches[0].split(10)
    # Every process must see targets of the variance that the one process sees.

    def work(group):
        mine = copy.deepcopy(module)
        fit_blocks(mine, dense, graph, masks, [parts[group.rank]], group=group)
        return mine.state_dict()

    states = on_all_ranks(work)
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(states[0][name], expected, rtol=0.01, atol=1e-4)
        assert all(torch.equal(state[name], states[0][name]) for state in states)


def test_progress_comes_after_each_block():
    dense, graph, module, masks, batches = _case(_mlp(), 6)
    names = []
    fit_blocks(module, dense, graph, masks, batches, progress=names.append)
    assert names == ["0.bias", "2.bias", "4.bias"]


def test_what_cannot_be_fitted_is_refused():
    dense, graph, module, masks, batches = _case(_mlp(), 6)
    with pytest.raises(ValueError, match="at least one batch"):
        fit_blocks(module, dense, graph, masks, [])
    with pytest.raises(ValueError, match="no parameter"):
        fit_blocks(module, dense, graph, {"other": masks["0.weight"]}, batches)
