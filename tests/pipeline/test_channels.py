"""Whole channels, heads and neurons as the recipe's pattern."""

import json

import onnx
import pytest
import torch
from torch import nn

from mfac_compress.export import Coupling, build_graph, find_coupling
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.coupled import couple
from mfac_compress.pipeline.inputs.layers import match_targets
from mfac_compress.pipeline.recipe.schema import Recipe


def test_neurons_go_from_the_file_with_all_weights_that_read_and_make_them(project):
    project.recipe["prune"] |= {"pattern": "neurons", "steps": 2}
    project.recipe["export"] |= {"round_to": 1}
    project.recipe["recover"] = {"epochs": 0}
    result = project.run("-q")
    assert result.exit_code == 0, result.output
    shapes = {
        name: {t.name: list(t.dims) for t in onnx.load(project.output / name).graph.initializer}
        for name in ("dense.onnx", "model.onnx")
    }
    assert shapes["dense.onnx"]["0.weight"] == [16, 6]
    assert shapes["model.onnx"]["0.weight"] == [8, 6]
    assert shapes["model.onnx"]["3.weight"] == [3, 8]
    report = json.loads((project.output / "report.json").read_text())
    assert report["sparsity"]["target"] == 0.5
    sparse = report["variants"]["sparse"]
    assert sparse["sparsity"] == 0.5
    assert all(audit["intact"] and audit["cut"] == audit["mask_zeros"] for audit in sparse["audit"])


def test_training_brings_no_channel_back(project):
    project.recipe["prune"] |= {"pattern": "neurons"}
    project.recipe["export"] |= {"round_to": 1}
    result = project.run("-q")
    assert result.exit_code == 0, result.output
    graph = onnx.load(project.output / "model.onnx").graph
    assert {t.name: list(t.dims) for t in graph.initializer}["0.weight"] == [8, 6]


def test_a_kind_that_the_model_does_not_have_is_refused(project):
    project.recipe["prune"] |= {"pattern": "heads"}
    result = project.run("-q", "--dry-run")
    assert result.exit_code == 2
    assert "the model must have heads that can go as a whole. Got none" in result.output


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.hidden, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.conv(x)))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def net():
    model = Net().eval()
    return model, find_coupling(build_graph(model, torch.randn(2, 3, 6, 6)))


def _coupled(net, coupling=None, processes=1, **prune):
    prune = {"sparsity": 0.5, "pattern": "channels", **prune}
    recipe = Recipe.model_validate({"data": {"source": "digits"}, "prune": prune})
    return couple(match_targets(net[0], recipe), coupling or net[1], recipe, processes)


def test_channels_are_those_of_convolutions_and_neurons_the_others(net):
    channels, neurons = _coupled(net), _coupled(net, pattern="neurons")
    assert list(channels.shapes) == ["conv.weight", "two.weight", "hidden.weight"]
    assert list(neurons.shapes) == ["hidden.weight", "head.weight"]
    assert "can go as a whole" in channels.left_out["head.weight"]
    assert int(channels.units.sizes[:-1].sum()) == 14
    assert (channels.target, channels.unit_size) == (0.5, 1)


def test_layers_lose_the_same_share_where_they_do_not_compete(net):
    targets = _coupled(net, scope="layerwise", overrides={"two": 0.25})
    assert targets.units.removed().tolist()[1:3] == [2, 3]  # of 8 and of 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ["conv"]}, "two.weight also reads them, and is left out"),
        ({"processes": 2}, "one process"),
        ({"pattern": "heads"}, "heads that can go as a whole"),
        ({"coupling": Coupling((), ("Softmax (s)",))}, r"operators do to channels: Softmax \(s\)"),
    ],
)
def test_what_cannot_go_as_a_whole_is_refused_with_its_reason(net, arguments, message):
    with pytest.raises(InputError, match=message):
        _coupled(net, **arguments)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "layerwise"}, "mfac or magnitude where prune.pattern is channels"),
        ({"selection": "sequential"}, "only single weights are judged anew"),
    ],
)
def test_methods_that_know_single_weights_only_are_refused(keys, message):
    prune = {"sparsity": 0.5, "pattern": "channels", **keys}
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"data": {"source": "digits"}, "prune": prune})
