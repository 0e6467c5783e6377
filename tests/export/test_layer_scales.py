"""The scales that a file in 8 bits gives its layers, and that a training in 8 bits rounds by."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from mfac_compress.export import export_onnx
from mfac_compress.export.layer_scales import layer_scales
from mfac_compress.export.quantise import StaticQuantiser
from mfac_compress.export.quantised_weights import signed_weights
from mfac_compress.mfac.fake_quantisation import FakeQuantisedLayer, weight_scale


def _batches():
    rng = np.random.default_rng(0)
    return [{"input": rng.standard_normal((8, 3, 4, 4)).astype(np.float32)} for _ in range(3)]


def _values(path):
    return {n: v.const_value.numpy() for n, v in ir.load(path).graph.initializers.items()}


def test_each_layer_has_the_scale_of_its_input(pruned, tmp_path):
    quantiser = StaticQuantiser(pruned.path, _batches(), scratch=tmp_path)
    quantiser.write(tmp_path / "int8.onnx")
    values = _values(tmp_path / "int8.onnx")
    inputs = {node.name: node.input[0] for node in quantiser.model.graph.node}
    scales = quantiser.scales()
    assert [one.weight for one in scales] == [one.weight for one in quantiser.layers]
    compared = 0
    for one, layer in zip(scales, quantiser.layers, strict=True):
        name = inputs[layer.node]
        if f"{name}_scale" in values:  # it is that of another tensor behind a reshape
            assert one.scale == values[f"{name}_scale"].item()
            assert one.zero_point == values[f"{name}_zero_point"].item()
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("reduce_range", [True, False])
def test_the_file_has_the_steps_of_the_training_also_where_batch_norm_is_folded(
    pruned, tmp_path, reduce_range
):
    """A factor for each output, also a negative one, changes the sign of its steps at most."""
    levels = 64 if reduce_range else 127
    options = {"reduce_range": reduce_range, "scratch": tmp_path}
    quantiser = StaticQuantiser(pruned.path, _batches(), **options)
    quantiser.write(tmp_path / "int8.onnx")
    written, signs = signed_weights(tmp_path / "int8.onnx"), set()
    for one in quantiser.scales():
        name = one.weight.removesuffix(".T")
        weight = pruned.model.get_parameter(name).detach()
        layer = FakeQuantisedLayer(name, one.scale, one.zero_point, one.axis)
        scale = weight_scale(weight, layer, 0, levels)
        steps = (weight.flatten(1) / scale[:, None]).round().numpy()
        found, theirs = written[one.weight].steps, written[one.weight].scale
        found = (found.T if one.axis else found).reshape(len(steps), -1)
        sign = np.sign((found * steps).sum(1, keepdims=True))
        np.testing.assert_array_equal(found, sign * steps)
        signs |= {*sign.flat}
        if name.split(".")[0] not in ("conv", "grouped"):  # no batch norm behind it
            np.testing.assert_array_equal(theirs, scale.numpy())
    assert signs >= {-1, 1}


def test_layers_in_float_are_left_out(pruned, tmp_path):
    quantiser = StaticQuantiser(pruned.path, _batches(), scratch=tmp_path)
    first, *others = quantiser.layers
    quantiser.write(tmp_path / "int8.onnx", in_float=[first.node])
    found = layer_scales(tmp_path / "int8.onnx", quantiser.layers)
    assert [one.weight for one in found] == [one.weight for one in others]


class _Shared(nn.Module):
    """A layer that is called twice, one call after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)

    def forward(self, x):
        return self.shared(self.shared(x).relu() * 3)


def test_a_weight_that_two_nodes_read_comes_twice_in_their_order(tmp_path):
    torch.manual_seed(0)
    net, x = _Shared(), torch.randn(64, 6)
    export_onnx(net, x[:2], tmp_path / "net.onnx")
    quantiser = StaticQuantiser(tmp_path / "net.onnx", [{"input": x.numpy()}], scratch=tmp_path)
    first, second = quantiser.scales()
    assert first.weight == second.weight == "shared.weight"
    hidden = 3 * net.shared(x).relu()
    for one, values in ((first, x), (second, hidden.detach())):
        expected = (values.max() - values.min().clip(max=0)).item() / 255
        assert one.scale == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("ranges", ["minmax", "entropy", "percentile"])
def test_ranges_that_are_known_give_the_file_of_those_that_are_measured(pruned, tmp_path, ranges):
    one = StaticQuantiser(pruned.path, _batches(), ranges=ranges, scratch=tmp_path)
    other = StaticQuantiser(pruned.path, None, measured=one.ranges, scratch=tmp_path)
    for name, quantiser in (("one", one), ("other", other)):
        quantiser.write(tmp_path / f"{name}.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_ranges_of_another_file_are_refused(pruned, tmp_path):
    ranges = dict(StaticQuantiser(pruned.path, _batches(), scratch=tmp_path).ranges)
    del ranges["input"]
    with pytest.raises(ValueError, match=r"ranges must be those.*input is not"):
        StaticQuantiser(pruned.path, None, measured=ranges, scratch=tmp_path)
