"""What multiplies the inputs can be pruned, as layers and in programs of torch.export."""

import pytest
import torch
from torch import nn

from mfac_compress.pipeline.inputs.prunable import why_not_prunable


class Conv1D(nn.Module):
    """As in the transformers library."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.reshape(*x.shape[:-1], -1)


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.turned = Conv1D(8, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.rnn = nn.RNN(8, 8, batch_first=True)
        self.up = nn.ConvTranspose1d(5, 4, 3)
        self.norm = nn.LayerNorm(10)
        self.attend = nn.MultiheadAttention(10, 2, batch_first=True)
        self.shift = nn.Parameter(torch.zeros(10))
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = self.rnn(self.gru(self.lstm(self.turned(x))[0])[0])[0]
        x = self.norm(self.up(x)) + self.shift
        return self.head(self.attend(x, x, x)[0])[:, 0]


PRUNABLE = {
    "turned.weight",
    *(f"lstm.weight_{to}_l0{back}" for to in ("ih", "hh") for back in ("", "_reverse")),
    *(f"{layer}.weight_{to}_l0" for layer in ("gru", "rnn") for to in ("ih", "hh")),
    "up.weight",
    "attend.in_proj_weight",
    "attend.out_proj.weight",
    "head.weight",
}


def exported(model):
    example, batch = torch.randn(4, 5, 8), torch.export.Dim("batch")
    return torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))


@pytest.mark.parametrize(
    "form",
    [
        lambda model: model,
        lambda model: exported(model).module(),
        lambda model: exported(model).run_decompositions({}).module(),
    ],
    ids=["layers", "program", "decomposed program"],
)
def test_all_that_multiplies_inputs_is_prunable(form):
    model = form(Everything())
    reasons = why_not_prunable(model)
    assert {name for name, _ in model.named_parameters()} - set(reasons) == PRUNABLE
    assert reasons["lstm.bias_ih_l0"] == "a bias"
    assert reasons["shift"].startswith("not a linear or convolution weight")


def test_attention_with_keys_of_another_width():
    attend = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert {"q_proj_weight", "k_proj_weight", "v_proj_weight"}.isdisjoint(why_not_prunable(attend))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cell):
    assert set(why_not_prunable(cell(4, 4))) == {"bias_ih", "bias_hh"}


def test_a_projected_lstm():
    assert "weight_hr_l0" not in why_not_prunable(nn.LSTM(4, 4, proj_size=2))


def test_a_weight_that_something_else_uses_too_is_tied():
    model = nn.ModuleList([nn.Embedding(3, 8), nn.Linear(8, 3), nn.Linear(8, 3)])
    model[1].weight = model[0].weight
    assert why_not_prunable(model)["0.weight"] == "tied: also used by Embedding"
    model[1].weight = model[2].weight
    assert "1.weight" not in why_not_prunable(model)


def test_frozen_parameters_are_not_prunable():
    model = nn.Linear(2, 2).requires_grad_(False)
    assert why_not_prunable(model)["weight"] == "frozen: requires_grad is False"
