"""Kinds of models that people have: the dry run says what the run will do, and the run passes."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

NETS = """
import warnings
import torch
from torch import nn
from torch.nn import functional as F

warnings.simplefilter("ignore", FutureWarning)  # the old weight norm

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x.view(-1, 3, 2))[0][:, -1])

class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 3, 3)

    def forward(self, x):
        return self.up(x.view(-1, 2, 3)).mean(-1)

class Conv1D(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)

def turned():
    return nn.Sequential(Conv1D(6, 16), nn.GELU(), Conv1D(16, 3))

def normed():
    first = nn.utils.weight_norm(nn.Linear(6, 16))
    return nn.Sequential(first, nn.ReLU(), nn.utils.spectral_norm(nn.Linear(16, 3)))

class LearnedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(2, 24), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.zeros(2, 3, 3))

    def forward(self, x):
        parts = self.qkv(x.view(-1, 3, 2)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[None])
        return self.head(mixed.transpose(1, 2).reshape(x.shape[0], 3, 8).mean(1))

def encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(6, 3)
    )

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()))

def lazy():
    return nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
"""

PRUNED = {
    "Recurrent": 2 * (32 * 2 + 32 * 8) + 48,
    "Transposed": 18,
    "turned": 144,
    "normed": 144,
    "LearnedBias": 72,
    "encoder": 2 * (108 + 36 + 2 * 96) + 18,
    "Tied": 36 + 18,
    "lazy": 144,
}


@pytest.fixture
def with_net(project):
    """Let the recipe build one of the nets above, with weights of its own."""

    def build(name):
        (project.folder / "nets.py").write_text(NETS)
        namespace = {"__name__": "nets"}
        exec(NETS, namespace)  # the test's own text
        torch.manual_seed(0)
        net = namespace[name]().eval()
        net(torch.zeros(2, 6))
        state = {key: value.clone() for key, value in net.state_dict().items()}
        save_file(state, project.model)
        project.recipe["model"] = {"factory": f"nets.py:{name}"}
        project.recipe["validate"]["gates"] = {"min_sparsity": 0.49, "max_parity_error": 1e-3}
        return net

    build.project = project
    return build


@pytest.mark.parametrize("name", PRUNED)
def test_what_the_dry_run_promises_the_run_does(with_net, name):
    with_net(name)
    plan = with_net.project.run("--dry-run").output
    result = with_net.project.run()

    assert f"weights: {PRUNED[name]:,}," in plan
    assert result.exit_code == 0, result.output
    masks = load_file(with_net.project.output / "masks.safetensors")
    assert sum(mask.numel() for mask in masks.values()) == PRUNED[name]


def test_computed_weights_are_said_to_be_folded(with_net):
    with_net("normed")
    plan = with_net.project.run("--dry-run").output
    assert "folded: 0.weight, computed by weight_norm" in plan
    assert "folded: 2.weight, computed by spectral_norm" in plan


def test_a_program_of_torch_export_with_other_layers(with_net):
    project, batch = with_net.project, torch.export.Dim("batch")
    example = (torch.ones(2, 6),)
    program = torch.export.export(with_net("Transposed"), example, dynamic_shapes=({0: batch},))
    torch.export.save(program, project.folder / "net.pt2")
    del project.recipe["model"]
    project.recipe["recover"] = {"epochs": 0}
    result = project.run(model=project.folder / "net.pt2")
    assert result.exit_code == 0, result.output
    masks = load_file(project.output / "masks.safetensors")
    assert np.isclose(1 - masks["up.weight"].float().mean().item(), 0.5)
