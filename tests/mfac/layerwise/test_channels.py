"""Channels that may change places: the outputs stay, whatever the order."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mfac_compress.mfac.layerwise import LayerGraph, channel_sets


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class _Residual(nn.Module):
    """A stride with new channels of zeros beside the old ones, as option A of He et al. (2016)."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        branch = self.outer(F.relu(self.inner_norm(self.inner(x))))
        x = F.relu(branch + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class _Depthwise(nn.Module):
    """An inverted bottleneck, squeezed and excited, then windows flattened to one row."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.narrow = nn.Conv2d(6, 4, 1)
        self.linear = nn.Linear(4 * 9, 3)

    def forward(self, x):
        x = F.hardswish(self.depthwise(F.relu6(self.wide(x))))
        weights = x.mean((2, 3), keepdim=True)
        x = x * torch.sigmoid(self.excite(F.silu(self.squeeze(weights))))
        return self.linear(F.max_pool2d(self.narrow(x), 2).flatten(1))


class _Encoder(nn.Module):
    """Only what lies within the feed-forward part is free."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu")

    def forward(self, x):
        return self.layer(x)


class _Shared(nn.Module):
    """The same matrix twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.shared(torch.relu(self.shared(torch.relu(self.first(x)))))
        return self.last(torch.relu(x))


class _ReadTwice(nn.Module):
    """A bias that something else reads."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x))) + self.first.bias[:2]


class _Ordered(nn.Module):
    """A product with numbers that belong to places."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("by_number", torch.arange(6.0))

    def forward(self, x):
        return self.last(self.first(x) * self.by_number)


MODELS = {
    "residual": (_Residual, (3, 8, 8), {4: 1, 6: 1}),
    "depthwise": (_Depthwise, (3, 6, 6), {6: 1, 2: 1, 4: 1}),
    "encoder": (_Encoder, (3, 4), {6: 1}),
    "shared": (_Shared, (4,), {}),
    "read twice": (_ReadTwice, (4,), {}),
    "ordered": (_Ordered, (4,), {}),
}


def _case(model, shape):
    model, x = model().double().eval(), torch.randn(5, *shape, dtype=torch.float64)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))
    return model, x, channel_sets(LayerGraph.trace(model, x))


@pytest.mark.parametrize(("model", "shape", "_"), MODELS.values(), ids=MODELS)
def test_the_outputs_stay_in_any_order(model, shape, _):
    model, x, sets = _case(model, shape)
    with torch.no_grad():
        before = model(x)
        for channels in sets:
            state = copy.deepcopy(model.state_dict())
            channels.reorder(model, torch.arange(channels.count).roll(1))
            assert any(not torch.equal(t, state[n]) for n, t in model.state_dict().items())
            torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize(("model", "shape", "expected"), MODELS.values(), ids=MODELS)
def test_all_that_is_free_is_found(model, shape, expected):
    *_, sets = _case(model, shape)
    found = [channels.count for channels in sets]
    wanted = [count for count, number in expected.items() for _ in range(number)]
    # In the residual model the new channels are a set of their own.
    assert sorted(found) == sorted([*wanted, 4] if model is _Residual else wanted)


def test_a_stream_is_one_set_with_all_that_writes_and_reads_it():
    *_, sets = _case(_Residual, (3, 8, 8))
    (stream,) = (channels for channels in sets if ("first.weight", 0) in channels.places)
    assert {place for place in stream.places if place[0].endswith("weight")} == {
        ("first.weight", 0),
        ("norm.weight", 0),
        ("inner.weight", 1),
        ("outer.weight", 0),
        ("linear.weight", 1),
    }
    assert stream.places["first.weight", 0].flatten().tolist() == [0, 1, 2, 3]
    assert stream.places["outer.weight", 0].flatten().tolist() == [2, 3, 4, 5]


def test_a_flattened_window_moves_as_a_whole():
    *_, sets = _case(_Depthwise, (3, 6, 6))
    (last,) = (channels for channels in sets if ("narrow.weight", 0) in channels.places)
    assert last.places["linear.weight", 1].tolist() == torch.arange(36).view(4, 9).tolist()


def test_an_order_says_which_channel_comes_where():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    (channels,) = channel_sets(LayerGraph.trace(model, torch.randn(2, 2)))
    first, last = model[0].weight.clone(), model[2].weight.clone()
    channels.reorder(model, torch.tensor([2, 0, 1]))
    assert torch.equal(model[0].weight, first[[2, 0, 1]])
    assert torch.equal(model[2].weight, last[:, [2, 0, 1]])
