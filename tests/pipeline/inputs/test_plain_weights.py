"""Computed weights become plain ones, of the value that they have in evaluation mode."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.plain_weights import fold_weights


def old_weight_norm(layer, name="weight"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, name)


def pruned_twice(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return prune.ln_structured(layer, "weight", 0.3, n=2, dim=0)


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


class Doubled(nn.Module):
    """Of another shape than what it is made of."""

    def forward(self, x):
        return torch.cat([x, x])

    def right_inverse(self, x):
        return x[: len(x) // 2]


def parametrized(by):
    def change(layer):
        return parametrize.register_parametrization(layer, "weight", by)

    return change


WAYS = {
    "weight_norm": old_weight_norm,
    "spectral_norm": spectral_norm,
    "the parametrization WeightNorm": parametrizations.weight_norm,
    "the parametrization SpectralNorm": parametrizations.spectral_norm,
    "the parametrization Orthogonal": parametrizations.orthogonal,
    "the parametrization Symmetric": parametrized(Symmetric()),
    "the parametrization Doubled": parametrized(Doubled()),
    "torch.nn.utils.prune": pruned_twice,
}


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("trained", [True, False])
def test_a_computed_weight_is_folded(by, trained):
    torch.manual_seed(0)
    model = nn.Sequential(WAYS[by](nn.Linear(6, 6)), nn.Linear(6, 2)).train()
    x = torch.randn(3, 6)
    model(x)  # spectral norm iterates
    model.eval().requires_grad_(trained)
    expected = model(x)

    assert fold_weights(model) == {"0.weight": by}

    torch.testing.assert_close(model(x), expected)
    assert {name for name, _ in model.named_parameters()} == {
        f"{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    }
    assert all(p.requires_grad == trained for p in model.parameters())
    copy.deepcopy(model).load_state_dict(model.state_dict())


@pytest.mark.parametrize("norm", [old_weight_norm, parametrizations.weight_norm])
def test_a_recurrent_layer_takes_its_folded_weight(norm):
    layer = norm(nn.LSTM(3, 4), "weight_hh_l0").eval()
    x = torch.randn(5, 2, 3)
    expected = layer(x)[0]

    fold_weights(layer)

    torch.testing.assert_close(layer(x)[0], expected)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    assert not torch.equal(layer(x)[0], expected)


def test_plain_weights_stay_as_they_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fold_weights(model) == {}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_weight_that_is_not_finite_is_refused_by_name():
    model = nn.Sequential(old_weight_norm(nn.Linear(2, 2))).eval()
    with torch.no_grad():
        model[0].weight_v.zero_()  # a norm of zero
    with pytest.raises(InputError, match=r"0\.weight must be finite.*weight_norm"):
        fold_weights(model)


def test_what_pytorch_cannot_fold_is_refused_by_name():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))).eval()
    model[0].parametrizations.weight.forward = lambda: 1 / 0
    with pytest.raises(InputError, match=r"0\.weight is computed by the param.*ZeroDivisionError"):
        fold_weights(model)
