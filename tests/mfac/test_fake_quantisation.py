"""Fake quantization: the values of 8 bits, the gradients of none."""

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization.quant_utils import quantize_data
from torch import nn
from torch.nn import functional as F

from mfac_compress.mfac.fake_quantisation import (
    FakeQuantisation,
    FakeQuantisedLayer,
    fake_quantised_weight,
    weight_scale,
)

LEVELS = 64
SCALE, ZERO_POINT = 0.03, 100


def _rounded(x):
    """The dense oracle, in float64."""
    steps = np.clip(np.rint(x / np.float64(np.float32(SCALE))) + ZERO_POINT, 0, 255)
    return (steps - ZERO_POINT) * np.float64(np.float32(SCALE))


def _rounded_weight(weight, axis):
    moved = np.moveaxis(weight.astype(np.float64), axis, 0)
    scale = np.abs(moved).reshape(len(moved), -1).max(1) / LEVELS
    scale = np.where(scale == 0, 1, scale).reshape(-1, *[1] * (weight.ndim - 1))
    return np.moveaxis(np.rint(moved / scale) * scale, 0, axis)


class _Addmm(nn.Module):
    """A linear layer as some transformers have it, its outputs last."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return torch.addmm(x.new_zeros(4), x, self.weight)


class _Matmul(_Addmm):
    def forward(self, x):
        return x @ self.weight


def _exported(make):
    def program():
        return torch.export.export(make().eval(), (torch.randn(5, 6),)).module()

    return program


LINEAR = partial(nn.Linear, 6, 4, bias=False)
MODELS = {
    "linear": (LINEAR, (5, 6), 0),
    "conv1d": (partial(nn.Conv1d, 6, 4, 3, groups=2, bias=False), (5, 6, 7), 0),
    "conv2d": (partial(nn.Conv2d, 6, 4, 3, padding="same", bias=False), (5, 6, 7, 7), 0),
    "conv3d": (partial(nn.Conv3d, 6, 4, 2, bias=False), (5, 6, 4, 4, 4), 0),
    "addmm": (_Addmm, (5, 6), 1),
    "matmul": (_Matmul, (5, 3, 6), 1),
    "program": (_exported(LINEAR), (5, 6), 0),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_outputs_are_those_of_rounded_inputs_and_weights(name):
    torch.manual_seed(0)
    make, shape, axis = MODELS[name]
    net, x = make(), 2 * torch.randn(shape)
    with torch.no_grad():
        net.weight.select(axis, 0).zero_()
    weight = net.weight.detach().clone()
    plain = net(x)
    with FakeQuantisation(net, [FakeQuantisedLayer("weight", SCALE, ZERO_POINT)], levels=LEVELS):
        found = net(x)
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(_rounded_weight(weight.numpy(), axis)))
        expected = net(torch.from_numpy(_rounded(x.numpy())).float())
        net.weight.copy_(weight)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(net(x), plain), "nothing is left of it"


def test_gradients_pass_straight_through_but_for_clipped_inputs():
    torch.manual_seed(0)
    net, x = LINEAR(), (3 * torch.randn(5, 6)).requires_grad_()
    with FakeQuantisation(net, [FakeQuantisedLayer("weight", SCALE, ZERO_POINT)], levels=LEVELS):
        net(x).square().sum().backward()
    rounded_x = torch.from_numpy(_rounded(x.detach().numpy()))
    rounded_w = torch.from_numpy(_rounded_weight(net.weight.detach().numpy(), 0))
    outer = 2 * rounded_x @ rounded_w.T
    low, high = -ZERO_POINT * SCALE, (255 - ZERO_POINT) * SCALE
    inside = ((x > low - SCALE / 2) & (x < high + SCALE / 2)).double()
    assert 0 < inside.mean() < 1
    torch.testing.assert_close(net.weight.grad.double(), outer.T @ rounded_x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), outer @ rounded_w * inside, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("levels", "reduced"), [(64, True), (127, False)])
def test_weights_round_as_onnx_runtime_rounds_them(levels, reduced):
    torch.manual_seed(0)
    weight = torch.randn(40, 500) * torch.logspace(-30, 3, 40)[:, None]
    weight[0], weight[1, :7] = 0, torch.tensor([64.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    weight[1, 7:] = 0
    layer = FakeQuantisedLayer("weight", 1.0, 0)
    scale = weight_scale(weight, layer, 0, levels)
    rounded = fake_quantised_weight(weight, layer, 0, levels)
    for row, own, values in zip(weight.numpy(), scale, rounded, strict=True):
        zero_point, theirs, steps = quantize_data(row, onnx.TensorProto.INT8, True, reduced)
        assert zero_point == 0
        assert own.item() == theirs.item()
        assert torch.equal((values / own).round().int(), torch.from_numpy(steps).int())


def test_inputs_round_to_even():
    x = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]])
    net = nn.Linear(6, 6, bias=False)
    nn.init.eye_(net.weight)
    with FakeQuantisation(net, [FakeQuantisedLayer("weight", 1.0, 128)], levels=LEVELS):
        assert net(x).tolist() == [[-2, -2, 0, 0, 2, 2]]


def test_removed_weights_stay_zero_and_get_no_other_value():
    torch.manual_seed(0)
    weight = torch.randn(8, 50)
    removed = torch.rand_like(weight) < 0.9
    weight[removed] = 0
    rounded = fake_quantised_weight(weight, FakeQuantisedLayer("weight", 1.0, 0), 0, LEVELS)
    assert not rounded[removed].any()
    assert rounded.any()


def test_what_is_cut_out_of_the_file_does_not_count_for_scales():
    weight = torch.tensor([[1.0, 9.0, 2.0], [3.0, 4.0, 1.0]])
    layer = FakeQuantisedLayer("weight", 1.0, 0, axis=0, kept=((0,), (0, 2)))
    assert weight_scale(weight, layer, 0, 1).tolist() == [2, 3]
    # The file has the transpose of what the model multiplies with.
    turned = FakeQuantisedLayer("weight", 1.0, 0, axis=1, kept=((0, 2), (0,)))
    assert weight_scale(weight, turned, 0, 1).tolist() == [2, 3]
    assert weight_scale(weight.T, turned, 1, 1).tolist() == [2, 3]


class _Twice(nn.Module):
    def __init__(self, calls=2):
        super().__init__()
        self.shared, self.calls = nn.Linear(3, 3, bias=False), calls

    def forward(self, x):
        for _ in range(self.calls):
            x = self.shared(x)
        return x


def test_a_layer_that_is_called_twice_rounds_its_inputs_in_turn():
    net = _Twice()
    nn.init.eye_(net.shared.weight)
    layers = [FakeQuantisedLayer("shared.weight", scale, 0) for scale in (0.5, 0.4)]
    with FakeQuantisation(net, layers, levels=LEVELS) as mode:
        for _ in range(2):  # each call of the model starts anew
            torch.testing.assert_close(net(torch.full((1, 3), 1.4)), torch.full((1, 3), 1.6))
        mode.check_calls()


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_other_calls_than_the_files_are_refused(calls):
    net = _Twice(calls)
    layers = [FakeQuantisedLayer("shared.weight", 1.0, 0)] * 2
    mode = FakeQuantisation(net, layers, levels=LEVELS)

    def run():
        with mode:
            net(torch.ones(1, 3))
            mode.check_calls()

    with pytest.raises(ValueError, match=f"shared.weight, the file has 2, and the model.*{calls}"):
        run()


def test_an_operator_that_is_not_known_is_no_call():
    net = nn.ConvTranspose1d(3, 3, 2)
    layers = [FakeQuantisedLayer("weight", 1.0, 0)]
    with FakeQuantisation(net, layers, levels=LEVELS) as mode:
        net(torch.ones(1, 3, 4))
        with pytest.raises(ValueError, match="linear, conv or matmul"):
            mode.check_calls()


def test_a_weight_that_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match=r"parameter of the model\. Got other"):
        FakeQuantisation(LINEAR(), [FakeQuantisedLayer("other", 1.0, 0)], levels=LEVELS)


def test_layers_of_another_model_are_left_alone():
    """As the teacher's in distillation."""
    net, other, x = LINEAR(), LINEAR(), torch.randn(2, 6)
    with FakeQuantisation(net, [FakeQuantisedLayer("weight", 1.0, 0)], levels=LEVELS):
        assert torch.equal(other(x), F.linear(x, other.weight))
