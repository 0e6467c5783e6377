"""Batch norm over several replicas normalises as one model with the whole batch does."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac.shared_batchnorm import shared_batchnorm

COPIES = 3


def _norm(**options):
    norm = nn.BatchNorm2d(4, **options)
    if norm.affine:
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    return norm


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}]
)
def test_replicas_with_equal_samples_are_one_model_with_all(options):
    torch.manual_seed(0)
    norm, alone = _norm(**options), _norm(**options)
    alone.load_state_dict(norm.state_dict())
    x = torch.randn(5, 4, 2, 3, requires_grad=True)
    whole = torch.cat([x.detach()] * COPIES).requires_grad_()

    for _ in range(2):
        with shared_batchnorm(norm, lambda total: total.mul_(COPIES)):
            y = norm(x)
        expected = alone(whole)
    y.square().mul(torch.arange(6.0).view(2, 3)).sum().backward()
    expected.square().mul(torch.arange(6.0).view(2, 3)).sum().backward()

    torch.testing.assert_close(y, expected[:5])
    torch.testing.assert_close(x.grad, whole.grad[:5])
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(dict(norm.named_buffers())[name], buffer)
    for own, all_of_them in zip(norm.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(COPIES * own.grad, all_of_them.grad)


def test_evaluation_mode_and_the_restored_forward_are_unchanged():
    norm, x = _norm(), torch.randn(5, 4, 2, 3)
    expected = norm.eval()(x)
    with shared_batchnorm(norm, lambda total: total.mul_(COPIES)):
        assert norm(x).equal(expected)
    assert norm.train().forward.__func__ is nn.BatchNorm2d.forward


def test_statistics_of_bfloat16_inputs_are_taken_in_float32():
    torch.manual_seed(0)
    norm, alone = _norm(), _norm()
    alone.load_state_dict(norm.state_dict())
    x = (5 + torch.randn(300, 4, 2, 3)).bfloat16()
    with shared_batchnorm(norm, lambda total: total.mul_(COPIES)):
        y = norm(x)
    alone(torch.cat([x.float()] * COPIES))
    assert y.dtype == torch.bfloat16
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(norm.get_buffer(name), alone.get_buffer(name))
