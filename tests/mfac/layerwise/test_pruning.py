"""Pruning by layers: whole units, the cheapest of each competition, the best weights under it."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac.layerwise import LayerGraph, layer_moments, prune_layers
from mfac_compress.mfac.units import NM, Block, Unstructured

PATTERNS = [Unstructured(), Block(4, 0), Block(4, 1), NM(2, 4)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, 3)
        self.fc = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def traced():
    net = Net().eval()
    x = torch.randn(64, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    graph = LayerGraph.trace(net, x[:2])
    names = ["conv.weight", "fc.weight"]
    return net, graph, layer_moments(graph, net, names, [x])


def _prune(traced, pattern, own=None, **options):
    net, graph, moments = traced
    shapes = {name: tuple(net.get_parameter(name).shape) for name in moments}
    layout, units = pattern.resolve(shapes, 0.5, own)
    weights = layout.flatten(dict(net.named_parameters()))
    pruned = prune_layers(weights, layout, units, graph.layers, moments, ridge=1e-6, **options)
    return layout, units, weights, pruned


def _error(traced, layout, before, after):
    """Squared error of each layer's output."""
    _, graph, moments = traced
    result = {}
    for name, change in layout.unflatten(after - before).items():
        W = graph.layers[name].matrix.matrices(change).double()
        result[name] = float(((W @ moments[name].H) * W).sum())
    return result


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("relative", [False, True])
def test_whole_units_go_as_many_as_asked_and_the_update_lowers_every_layers_error(
    traced, pattern, relative
):
    layout, units, weights, pruned = _prune(traced, pattern, relative=relative)
    *_, unchanged = _prune(traced, pattern, relative=relative, update=False)

    assert torch.equal(pruned.mask, unchanged.mask)
    alive = torch.zeros(units.count).index_add_(0, units.of_weight, pruned.mask.float())
    assert set(alive.unique().tolist()) == {0, len(weights) // units.count}
    lost = torch.bincount(units.competition[alive == 0], minlength=len(units.sparsity))
    assert torch.equal(lost, units.removed())
    assert not pruned.weights[~pruned.mask].any()
    updated = _error(traced, layout, weights, pruned.weights)
    plain = _error(traced, layout, weights, unchanged.weights)
    assert all(updated[name] <= plain[name] for name in plain)
    assert sum(updated.values()) < 0.99 * sum(plain.values())


def test_what_has_gone_stays_gone(traced):
    layout, units, _, first = _prune(traced, Unstructured())
    again = prune_layers(
        first.weights,
        layout,
        units,
        traced[1].layers,
        traced[2],
        removed=units.removed() + 20,
        keep=first.mask,
    )
    assert not (again.mask & ~first.mask).any()
    assert int((~again.mask).sum()) == int((~first.mask).sum()) + 20


def test_relative_costs_do_not_depend_on_the_scale_of_a_layers_output(traced):
    _, graph, moments = traced
    masks = {}
    for relative in (False, True):
        layout, units, weights, plain = _prune(traced, Unstructured(), relative=relative)
        scaled = weights.clone()
        scaled[layout.tensors[0].start : layout.tensors[0].stop] *= 0.01
        of_scaled = prune_layers(
            scaled, layout, units, graph.layers, moments, relative=relative, ridge=1e-6
        )
        masks[relative] = torch.equal(plain.mask, of_scaled.mask)
    assert masks == {False: False, True: True}
