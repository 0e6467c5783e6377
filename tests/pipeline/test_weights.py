"""What must be finite is, and what need not is let be."""

import json

import pytest
import torch
from torch import nn

from mfac_compress.pipeline.weights import not_finite, restore, versioned


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1), persistent=False)


def test_infinities_are_let_be_in_constants_only():
    net = Net()
    assert not_finite(net) == []
    net.mask[0, 0] = torch.nan
    assert not_finite(net) == ["mask"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["linear.weight", "norm.running_mean", "norm.running_var"])
def test_parameters_and_running_statistics_must_be_finite(name, value):
    net = Net()
    net.state_dict()[name].view(-1)[1] = value
    assert not_finite(net) == [name]


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("mask", torch.full((16,), -torch.inf), persistent=False)
    def get_extra_state(self):
        return {"version": 3}
    def set_extra_state(self, state):
        assert state == {"version": 3}
    def forward(self, x):
        return self.last(torch.maximum(self.first(x), self.mask).relu())

def net():
    torch.manual_seed(0)
    return Net()
"""


def test_a_model_with_extra_state_and_infinite_constants_runs_through(project):
    (project.folder / "net.py").write_text(FACTORY)
    source = {}
    exec(FACTORY, source)
    torch.save({"model": source["net"]().state_dict(), "epoch": 3}, project.folder / "net.pt")
    project.model = project.folder / "net.pt"
    project.recipe["validate"]["gates"] = {"min_sparsity": 0.5, "max_parity_error": 1e-3}
    result = project.run()
    assert result.exit_code == 0, result.output
    manifest = json.loads((project.output / "manifest.json").read_text())
    assert manifest["model_weights"] == "model"


def test_versions_of_modules_come_with_all_their_tensors():
    net = Net()
    own = net.state_dict()
    assert versioned(dict(own), own)._metadata == own._metadata
    part = {name: value for name, value in own.items() if name != "norm.num_batches_tracked"}
    assert versioned(part, own)._metadata == {"": {"version": 1}, "linear": {"version": 1}}
    assert restore(Net(), part).state_dict().keys() == own.keys()
