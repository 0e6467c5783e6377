import math

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mfac_compress.export import export_onnx, parity_error

INPUTS = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def shift_bias(path, target, amount):
    """Add an amount to one bias of the head in the file."""
    model = onnx.load(path)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.bias"]
    values = numpy_helper.to_array(bias).copy()
    values[2] += amount
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, target)


@pytest.mark.parametrize("rows", [1, 5])
def test_the_file_computes_what_the_model_computes(pruned, rows):
    pruned.model.train()
    assert parity_error(pruned.model, pruned.path, INPUTS[:rows]) < 1e-5
    assert pruned.model.training


def test_the_largest_difference_is_found(pruned, tmp_path):
    shift_bias(pruned.path, tmp_path / "shifted.onnx", -0.25)
    error = parity_error(pruned.model, tmp_path / "shifted.onnx", INPUTS)
    assert error == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_a_number_is_an_infinite_error(pruned, tmp_path, value):
    shift_bias(pruned.path, tmp_path / "shifted.onnx", value)
    assert parity_error(pruned.model, tmp_path / "shifted.onnx", INPUTS) == math.inf


def test_an_infinite_output_of_both_is_an_infinite_error(tmp_path):
    model = nn.Linear(4, 2)
    nn.init.constant_(model.bias, math.inf)
    export_onnx(model, torch.ones(2, 4), tmp_path / "m.onnx")
    assert parity_error(model, tmp_path / "m.onnx", torch.ones(2, 4)) == math.inf


def test_outputs_of_another_shape_are_refused(pruned):
    with pytest.raises(ValueError, match=r"shape \[5, 1\]. Got \[5, 5\]"):
        parity_error(nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), pruned.path, INPUTS)
