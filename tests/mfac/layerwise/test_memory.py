"""Estimates of memory against what is really held."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac.layerwise import (
    LayerGraph,
    bytes_of_least_squares,
    bytes_of_pruning,
    layer_moments,
)
from mfac_compress.mfac.layerwise.memory import live_bytes


class _Residual(nn.Module):
    """The input of the branch is held until the sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        return x.flatten(1) * 2 + self.second(self.first(x.flatten(1)).relu())


def _case(samples):
    torch.manual_seed(0)
    model, x = _Residual().eval(), torch.randn(samples, 2, 4)
    return model, x, LayerGraph.trace(model, x)


@pytest.mark.parametrize("samples", [2, 10])
def test_a_value_is_held_until_its_last_use_and_views_take_nothing(samples):
    model, x, graph = _case(samples)
    # The doubled input beside the hidden layer and its rectified form.
    assert live_bytes(graph, model, x) == 4 * samples * (8 + 32 + 32)


def test_least_squares_holds_both_models_for_each_sample():
    model, x, graph = _case(10)
    each, once = bytes_of_least_squares(graph, model, [*graph.layers], x)
    assert each == 4 * 2 * (8 + 32 + 32 + 8)
    of_first = 8 * (8 * 8 + 32 * 8)
    of_second = 8 * (32 * 32 + 8 * 32)
    assert once == 6 * max(of_first, of_second)
    assert bytes_of_least_squares(graph, model, ["first.bias"], x) == (each, 0)


def test_pruning_holds_the_moments_of_all_layers():
    model, x, graph = _case(10)
    names = [*graph.layers]
    moments = layer_moments(graph, model, names, [x])
    held = sum(each.H.nbytes for each in moments.values())
    needed = bytes_of_pruning(graph, model, names, x, batch_size=100)
    assert needed == held + 6 * moments["second.weight"].H.nbytes + 10 * live_bytes(graph, model, x)
