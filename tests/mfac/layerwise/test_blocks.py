"""Blocks fitted to the dense blocks' outputs."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mfac_compress.mfac.layerwise import LayerGraph, fit_blocks
from mfac_compress.mfac.layerwise.run import run
from mfac_compress.mfac.layerwise.tracing import named_state


@pytest.fixture(autouse=True)
def _seeded():
    """Models are made in the tests."""
    torch.manual_seed(0)


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


def _case(model, *shape, count=4, size=8, dtype=torch.float64):
    """A dense model, its graph, a copy with half of each matrix removed, masks and batches."""
    torch.manual_seed(0)
    dense = model.to(dtype).eval()
    batches = [torch.randn(size, *shape, dtype=dtype) for _ in range(count)]
    graph = LayerGraph.trace(dense, batches[0])
    module = copy.deepcopy(dense)
    parameters = dict(module.named_parameters())
    masks = {name: torch.rand(parameters[name].shape) > 0.5 for name in graph.layers}
    for name, mask in masks.items():
        parameters[name].data.masked_fill_(~mask, 0)
    return dense, graph, module, masks, batches


def _by_hand(dense, module, masks, batches, spans, epochs, lr, scores=False):
    """Parts of a sequential model by one Adam on one batch; the last two share their gradients."""
    (x,) = batches
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    for step in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / epochs)) / 2
        got, wanted, loss = x, x, 0
        for number, (start, stop) in enumerate(spans):
            is_last = number == len(spans) - 1
            got = module[start:stop](got if is_last else got.detach())
            wanted = dense[start:stop](wanted).detach()
            if is_last and scores:
                loss = loss + F.kl_div(
                    got.log_softmax(1),
                    wanted.log_softmax(1),
                    log_target=True,
                    reduction="batchmean",
                )
            else:
                loss = loss + (got - wanted).square().mean() / wanted.var(correction=0)
        optimizer.zero_grad()
        loss.backward()
        for name, mask in masks.items():
            module.get_parameter(name).grad.masked_fill_(~mask, 0)
        optimizer.step()


@pytest.mark.parametrize("scores", [True, False])
def test_each_block_is_fitted_on_what_the_blocks_before_it_give(scores):
    dense, graph, module, masks, batches = _case(_mlp(), 6, count=1, size=50)
    by_hand = copy.deepcopy(module)
    _by_hand(dense, by_hand, masks, batches, [(0, 2), (2, 4), (4, 5)], 20, 0.01, scores)
    fit_blocks(
        module,
        dense,
        graph,
        masks,
        batches,
        epochs=20,
        lr=0.01,
        scores_axis=1 if scores else None,
    )
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


def test_gradients_are_given_back_where_the_fit_fails():
    dense, graph, module, masks, batches = _case(_mlp(), 6)
    before = {}
    for name, parameter in module.named_parameters():
        parameter.grad = before[name] = torch.ones_like(parameter)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_blocks(module, dense, graph, masks, batches, progress=interrupt)
    for name, parameter in module.named_parameters():
        assert parameter.grad is before[name]


def test_frozen_parameters_stay():
    model = _mlp()
    model[4].weight.requires_grad_(False)
    dense, graph, module, masks, batches = _case(model, 6)
    before = copy.deepcopy(module.state_dict())
    fit_blocks(module, dense, graph, masks, batches)
    unchanged = {n for n, tensor in module.state_dict().items() if torch.equal(tensor, before[n])}
    assert unchanged == {"4.weight"}


def test_blocks_before_the_first_error_stay():
    dense, graph, module, masks, batches = _case(_convnet(), 2, 10, 10)
    module.load_state_dict(dense.state_dict())
    last = {"5.weight": masks["5.weight"]}
    module[5].weight.data.masked_fill_(~last["5.weight"], 0)
    fit_blocks(module, dense, graph, last, batches)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, dense.state_dict()[name]) == (name not in ("5.weight", "5.bias"))


def test_the_dense_model_stays():
    dense, graph, module, masks, batches = _case(_convnet(), 2, 10, 10, dtype=torch.float32)
    module.load_state_dict(dense.state_dict())
    every = {name: mask | True for name, mask in masks.items()}
    fit_blocks(module, dense, graph, every, batches)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, dense.state_dict()[name])


def test_inputs_may_differ_in_every_pass():
    dense, graph, module, masks, _ = _case(_mlp(), 6)
    generator = torch.Generator().manual_seed(0)

    class Fresh:
        passes = 0

        def __len__(self):
            return 3

        def __contains__(self, _):
            return False

        def __iter__(self):
            self.passes += 1
            return iter(torch.randn(3, 40, 6, generator=generator, dtype=torch.float64))

    fresh, x = Fresh(), torch.randn(200, 6, dtype=torch.float64)
    error = (module(x) - dense(x)).square().mean()
    fit_blocks(module, dense, graph, masks, fresh, epochs=30, lr=0.01)
    assert fresh.passes == 1 + 30
    assert (module(x) - dense(x)).square().mean() < error / 2


def test_batches_that_come_once_are_kept():
    dense, graph, module, masks, batches = _case(_mlp(), 6)
    once = copy.deepcopy(module)
    fit_blocks(module, dense, graph, masks, batches)
    fit_blocks(once, dense, graph, masks, (batch for batch in batches))
    for got, expected in zip(once.parameters(), module.parameters(), strict=True):
        assert torch.equal(got, expected)


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

    def work(group):
        mine = copy.deepcopy(module)
        fit_blocks(mine, dense, graph, masks, [parts[group.rank]], group=group)
        return mine.state_dict()

    states = on_all_ranks(work)
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(states[0][name], expected, rtol=0.01, atol=1e-4)
        assert all(torch.equal(state[name], states[0][name]) for state in states)


def test_progress_comes_after_each_pass():
    dense, graph, module, masks, batches = _case(_mlp(), 6)
    passes = []
    fit_blocks(module, dense, graph, masks, batches, epochs=3, progress=passes.append)
    assert passes == ["1", "2", "3"]


@pytest.mark.parametrize("bias", [True, False])
def test_convolution_and_norm_in_one_compute_what_both_do(bias):
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4, affine=False)).eval()
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(model[1].weight)
    x = torch.randn(3, 4, 6, 6)
    graph = LayerGraph.trace(model, x)
    assert len(graph.folds) == 2
    program, start = graph.program, graph.program.start(x)
    values = run(program, program.nodes, named_state(model), start, folds=graph.folds)
    torch.testing.assert_close(values[program.outputs[0]], model(x))


def test_what_cannot_be_fitted_is_refused():
    dense, graph, module, masks, batches = _case(_mlp(), 6)
    with pytest.raises(ValueError, match="at least one batch"):
        fit_blocks(module, dense, graph, masks, [])
    with pytest.raises(ValueError, match="no parameter"):
        fit_blocks(module, dense, graph, {"other": masks["0.weight"]}, batches)
