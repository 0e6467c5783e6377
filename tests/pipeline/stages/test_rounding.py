"""Rounding of a file's layers, against errors of outputs that PyTorch computes in float64."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mfac_compress.export import export_onnx
from mfac_compress.export.layer_inputs import layer_products
from mfac_compress.export.quantise import StaticQuantiser
from mfac_compress.export.quantised_weights import SignedWeight, signed_weights
from mfac_compress.pipeline.stages import rounding
from mfac_compress.pipeline.stages.rounding import round_layers

# Of PyTorch, for a convolution that pads one side more than the other.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


class _Layers(nn.Module):
    """Layers of all kinds, side by side, each with few positions so that all are looked at."""

    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.dilated = nn.Conv2d(4, 8, (3, 2), dilation=(2, 1), padding="same", groups=2)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.line = nn.Conv1d(4, 6, 3, padding=2)
        self.tokens = nn.Linear(4, 6, bias=False)
        self.head = nn.Linear(4, 3)
        self.up = nn.ConvTranspose2d(4, 2, 2)

    def calls(self, x):
        """The weights that are multiplied with parts of x, and with what."""
        tokens, mean = x.flatten(2).mT, x.mean((2, 3))
        images = {self.strided: x, self.dilated: x, self.depthwise: x, self.up: x}
        return images | {self.line: x.flatten(2), self.tokens: tokens, self.head: mean}

    def forward(self, x):
        return torch.cat([layer(y).flatten(1) for layer, y in self.calls(x).items()], dim=1)


def _batches(seed):
    """Inputs whose channels go together, as those of a trained model do."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(0).standard_normal((4, 4))
    for n in (8, 8, 4):
        x = random.standard_normal((n, 4, 6, 6)) + 0.5
        yield {"input": np.einsum("ij,njhw->nihw", mix, x).astype(np.float32)}


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    torch.manual_seed(0)
    model, folder = _Layers().eval(), tmp_path_factory.mktemp("layers")
    with torch.no_grad():
        for weight in _weights(model).values():
            weight.mul_(torch.rand_like(weight) < 0.6)
    export_onnx(model, torch.randn(2, 4, 6, 6), folder / "net.onnx")
    quantiser = StaticQuantiser(folder / "net.onnx", _batches(1), scratch=folder)
    quantiser.write(folder / "int8.onnx")
    return model, quantiser, signed_weights(folder / "int8.onnx"), folder


def _weights(model):
    return {f"{name}.weight": one.weight for name, one in model.named_children()}


def _round(layers, **changes):
    _, quantiser, nearest, folder = layers
    given = {
        "model": quantiser.model,
        "nearest": nearest,
        "samples": lambda: _batches(1),
        "held_out": lambda: _batches(2),
        "generator": torch.Generator(),
        "scratch": folder,
        "step": lambda *_: None,
    }
    return round_layers(*(given | changes).values())


@pytest.fixture(scope="module")
def rounded(layers):
    return _round(layers)


def _error(model, quantiser, name, weight, seed):
    """Squared error of a layer's outputs as a share of their square, without its bias."""
    product = dict(layer_products(quantiser.model))[name]
    layer = model.get_submodule(name.removesuffix(".T").removesuffix(".weight"))
    rounded = weight.scale.reshape(*product.matrices(product.values).shape[:2], 1)
    rounded = product.tensor(product.matrices(weight.steps).astype(np.float64) * rounded)
    rounded = torch.from_numpy(rounded.T if name.endswith(".T") else rounded)
    error = total = 0.0
    for batch in _batches(seed):
        x = model.calls(torch.from_numpy(batch["input"]))[layer].double()
        W = layer.weight.detach().double()
        one, two = (_product(layer, x, w) for w in (W, rounded.reshape(W.shape)))
        error, total = error + (one - two).square().sum(), total + one.square().sum()
    return (error / total).item()


def _product(layer, x, weight):
    if isinstance(layer, nn.Linear):
        return x @ weight.T
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    return convolve(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def test_errors_are_those_of_the_layers_outputs_on_held_out_samples(layers, rounded):
    model, quantiser, nearest, _ = layers
    steps, found = rounded
    assert len(found) == 7
    for one in found:
        if one.reason is not None:
            continue
        own = nearest[one.weight]
        before = _error(model, quantiser, one.weight, own, seed=2)
        assert one.nearest_error == pytest.approx(before, rel=1e-4)
        solved = SignedWeight(steps[one.weight], own.scale)
        after = _error(model, quantiser, one.weight, solved, seed=2)
        assert one.solved_error == pytest.approx(after, rel=1e-4)


def test_layers_come_nearer_and_what_is_no_product_is_named(rounded):
    steps, found = rounded
    for one in found:
        if one.weight == "up.weight":
            assert "transposed convolution" in one.reason
            assert not one.solved
        else:
            assert one.solved
            few = one.weight == "depthwise.weight"  # a row has 9 weights, of which 4 are gone
            assert one.solved_error < (1 if few else 0.8) * one.nearest_error
    assert steps.keys() == {one.weight for one in found if one.solved}


def test_removed_weights_stay_zero_and_steps_are_those_of_8_bits(layers, rounded):
    _, quantiser, nearest, _ = layers
    products = dict(layer_products(quantiser.model))
    for name, array in rounded[0].items():
        assert array.dtype == np.int8
        assert array.shape == nearest[name].steps.shape == products[name].values.shape
        assert (array[products[name].values == 0] == 0).all()
        assert np.abs(array.astype(int)).max() <= 127


def test_what_is_worse_on_held_out_samples_is_not_taken(layers, monkeypatch):
    monkeypatch.setattr(rounding, "round_to_grid", lambda W, *_, **__: torch.zeros_like(W))
    steps, found = _round(layers)
    assert not steps
    for one in found:
        assert not one.solved
        if one.reason is None:
            assert one.solved_error == pytest.approx(1)
            assert one.nearest_error < 1e-3


def test_samples_choose_the_steps_and_held_out_ones_do_not(layers, rounded):
    steps, _ = rounded
    for changes, same in (
        ({"held_out": lambda: _batches(3)}, True),
        ({"samples": lambda: _batches(3)}, False),
    ):
        other, _ = _round(layers, **changes)
        assert all(np.array_equal(other[name], steps[name]) for name in steps) == same


def test_layers_in_portions_give_the_same(layers, rounded, monkeypatch):
    largest = 8 * 36**2  # of the strided convolution's moments
    monkeypatch.setattr(rounding, "_MOST_BYTES", largest)
    steps, found = _round(layers)
    assert found == rounded[1]
    assert all(np.array_equal(steps[name], rounded[0][name]) for name in rounded[0])
    monkeypatch.setattr(rounding, "_MOST_BYTES", largest - 1)
    reasons = {one.weight: one.reason for one in _round(layers)[1]}
    assert "second moments of its 36 inputs" in reasons["strided.weight"]
    assert reasons["head.weight" if "head.weight" in reasons else "head.weight.T"] is None


def test_inputs_that_are_not_finite_leave_a_layer_as_it_is(layers):
    steps, found = _round(layers, samples=lambda: [{"input": np.full((2, 4, 6, 6), np.nan, "f4")}])
    assert not steps
    assert all("finite" in one.reason for one in found if one.weight != "up.weight")


class _Shared(nn.Module):
    """A weight that two layers read."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.layer(torch.relu(self.layer(x)))


def test_a_weight_that_two_layers_read_is_judged_by_both(tmp_path):
    torch.manual_seed(0)
    model = _Shared().eval()
    export_onnx(model, torch.randn(2, 4, 6, 6), tmp_path / "net.onnx")
    quantiser = StaticQuantiser(tmp_path / "net.onnx", _batches(1), scratch=tmp_path)
    quantiser.write(tmp_path / "int8.onnx")
    nearest = signed_weights(tmp_path / "int8.onnx")
    _, (found,) = _round((model, quantiser, nearest, tmp_path))
    product = next(one for _, one in layer_products(quantiser.model))
    W = product.matrices(product.values)[0].astype(np.float64)
    D = product.matrices(nearest[found.weight].steps)[0] * nearest[found.weight].scale[:, None] - W
    x = np.concatenate([one["input"] for one in _batches(2)]).mean((2, 3), dtype=np.float64)
    x = np.concatenate([x, np.maximum(x @ W.T, 0)])
    expected = np.square(x @ D.T).sum() / np.square(x @ W.T).sum()
    assert found.nearest_error == pytest.approx(expected, rel=1e-4)
