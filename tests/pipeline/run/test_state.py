"""A state goes to files and comes back, into another copy of the model."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mfac_compress.pipeline.run.state import State


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.linear.weight

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        raise AssertionError("the file has none")


@pytest.fixture
def state():
    net = Net()
    net.norm.running_mean.fill_(3)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0] = False
    return State.of(net, {"linear.weight": mask.mT})


def test_a_state_comes_back_as_it_was(state, tmp_path):
    state.save(tmp_path)
    found = State.load(tmp_path)
    for kind in ("tensors", "masks"):
        one, other = getattr(state, kind), getattr(found, kind)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    net = found.into(Net())
    assert torch.equal(net.norm.running_mean, torch.full((4,), 3.0))
    assert net.tied.weight is net.linear.weight


def test_a_state_is_a_copy(state):
    net = state.into(Net())
    before = State.of(net, {})
    with torch.no_grad():
        net.linear.weight.zero_()
    assert before.tensors["linear.weight"].any()


def test_sparsity_counts_all_masks(state):
    kept = torch.ones(16, dtype=torch.bool)
    assert state.sparsity == 0.25
    assert State({}, {**state.masks, "other": kept}).sparsity == 0.125


def test_masks_are_in_a_file_of_their_own(state, tmp_path):
    state.save(tmp_path)
    assert load_file(tmp_path / "masks.safetensors").keys() == {"linear.weight"}
