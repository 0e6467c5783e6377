"""Attention on other than four axes is exported, and computes what PyTorch's own does."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from mfac_compress.export import export_onnx, parity_error
from mfac_compress.export.attention_axes import attend

LEADING = {"two": (), "three": (2,), "four": (2, 3), "five": (2, 4, 3), "six": (2, 5, 4, 3)}


def draw(leading, last):
    return torch.randn(*leading, *last, dtype=torch.float64)


def masks(leading):
    """Of each number of axes that broadcasts to that of the scores."""
    shape = (*leading, 6, 7)
    ones = [tuple(1 if axis % 2 else size for axis, size in enumerate(shape))]
    shapes = [shape[start:] for start in range(len(shape) - 1)] + ones
    return [None, *(torch.randn(each, dtype=torch.float64) for each in shapes)]


@pytest.mark.parametrize("leading", LEADING.values(), ids=LEADING.keys())
def test_attention_is_what_it_is_on_its_own_axes(leading):
    torch.manual_seed(0)
    query, key, value = draw(leading, (6, 4)), draw(leading, (7, 4)), draw(leading, (7, 5))
    for mask in masks(leading):
        expected = scaled_dot_product_attention(query, key, value, mask, scale=0.3)
        torch.testing.assert_close(attend(query, key, value, mask, scale=0.3), expected)
        if mask is not None:
            expected = scaled_dot_product_attention(query, key, value, attn_mask=mask > 0)
            found = attend(query, key, value, attn_mask=mask > 0)
            torch.testing.assert_close(found, expected, equal_nan=True)
    if leading:  # the axis before the last two may broadcast
        one = query[..., :1, :, :]
        expected = scaled_dot_product_attention(one, key, value)
        torch.testing.assert_close(attend(one, key, value), expected)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attend(query, key, value, None, 0.0, True), expected)


class Windows(nn.Module):
    """Attention within windows, on ``axes`` axes."""

    def __init__(self, axes):
        super().__init__()
        self.axes, self.mix = axes, nn.Linear(4, 12)

    def forward(self, x):
        parts = self.mix(x).chunk(3, dim=-1)
        if self.axes == 5:  # two windows, two heads
            parts = [p.unflatten(1, (2, -1)).unflatten(-1, (2, 2)).transpose(2, 3) for p in parts]
        mixed = scaled_dot_product_attention(*parts)
        return mixed.transpose(2, 3).reshape(x.shape) if self.axes == 5 else mixed


@pytest.mark.parametrize("axes", [3, 5])
def test_attention_on_other_than_four_axes_is_exported(tmp_path, axes):
    model = Windows(axes)
    export_onnx(model, torch.randn(2, 6, 4), tmp_path / "m.onnx")
    assert parity_error(model, tmp_path / "m.onnx", torch.randn(5, 6, 4)) < 1e-5
