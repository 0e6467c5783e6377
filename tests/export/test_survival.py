"""Zeros of a pruned tensor are in the ONNX file, or the tensor is named with the cause."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mfac_compress.export import (
    Variant,
    audit_zeros,
    build_graph,
    lost_zeros,
    survival,
    write_graph,
)


class Standardised(nn.Module):
    """Weight standardisation."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        w = self.conv.weight
        w = (w - w.mean((1, 2), keepdim=True)) / w.std((1, 2), keepdim=True)
        return self.head(F.conv1d(x, w).mean(-1))


class OnConstant(nn.Module):
    """A layer whose input is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.place, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.register_buffer("grid", torch.randn(4, 3))

    def forward(self, x):
        return self.head((x + self.place(self.grid)).mean(1))


class Halved(nn.Module):
    """The exporter computes another tensor, with the same zeros."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return F.linear(x.mean(1), self.head.weight * 0.5)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(8, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def matrices(model):
    return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]


def lost(model, names=None):
    torch.manual_seed(0)
    example = torch.randn(4, 4, 8)
    graph = build_graph(model.eval(), example)
    return lost_zeros(
        copy.deepcopy(model),
        graph,
        example,
        names or matrices(model),
        build=lambda pruned: build_graph(pruned, example),
    )


def convolutions():
    return nn.Sequential(
        nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


@pytest.mark.parametrize(
    "model",
    [
        convolutions(),
        Halved(),
        Recurrent(nn.LSTM),
        Recurrent(nn.GRU),
        nn.Sequential(nn.Linear(8, 8), nn.Conv1d(4, 4, 3)),
    ],
    ids=["convolutions", "halved", "lstm", "gru", "matmul"],
)
def test_zeros_of_ordinary_layers_survive(model):
    assert lost(model) == {}


@pytest.mark.parametrize(
    ("model", "name"), [(Standardised(), "conv.weight"), (OnConstant(), "place.weight")]
)
def test_a_tensor_that_the_file_does_not_hold_is_named(model, name):
    reasons = lost(model)
    assert list(reasons) == [name]
    assert "zeros would be lost" in reasons[name]


def test_the_graph_is_restored_and_exported_once(monkeypatch):
    model, example = convolutions().eval(), torch.randn(4, 4, 8)
    graph = build_graph(model, example)
    before = {name: value.const_value for name, value in graph.graph.initializers.items()}

    def refuse(_):
        raise AssertionError("exported again")

    assert not lost_zeros(copy.deepcopy(model), graph, example, matrices(model), build=refuse)
    after = {name: value.const_value for name, value in graph.graph.initializers.items()}
    assert after == before


def test_a_file_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(
        survival, "predict", lambda session, inputs, *_: (inputs[:, 0, :3] * 0).numpy()
    )
    with pytest.raises(ValueError, match="must compute what the model computes"):
        lost(convolutions())


def test_a_projected_lstm_which_the_exporter_translates_wrongly_is_refused():
    model = Recurrent(lambda inputs, _, **how: nn.LSTM(inputs, 16, proj_size=8, batch_first=True))
    with pytest.raises(ValueError, match="ONNX Runtime must be able to run"):
        lost(model)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_weights_are_audited_by_name(kind, tmp_path):
    model, example = Recurrent(kind).eval(), torch.randn(4, 4, 8)
    names = [name for name in matrices(model) if name.startswith("layer")]
    masks = {name: torch.rand(model.get_parameter(name).shape) > 0.5 for name in names}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
        back = model.layer.weight_hh_l1_reverse
        back[tuple(torch.nonzero(~masks["layer.weight_hh_l1_reverse"])[0])] = 1e-6
    write_graph(build_graph(model, example), tmp_path / "m.onnx")

    for audit in audit_zeros([Variant("m", tmp_path / "m.onnx")], masks)["m"]:
        came_back = audit.name == "layer.weight_hh_l1_reverse"
        assert audit.onnx_zeros == audit.optimized_zeros == audit.mask_zeros - came_back
