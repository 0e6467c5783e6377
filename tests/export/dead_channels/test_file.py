"""Files without their dead channels, and the audit of their zeros."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from mfac_compress.export import Variant, audit_zeros, export_onnx, open_session, shrink_file
from mfac_compress.export.dead_channels import file


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masks(model):
    """Ten whole rows of the first layer are removed, and single weights of others."""
    generator = torch.Generator().manual_seed(1)
    masks = {
        name: torch.rand(tensor.shape, generator=generator) > 0.3
        for name, tensor in model.named_parameters()
        if tensor.ndim == 2
    }
    masks["0.weight"][:10] = False
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return masks


def exported(model, path):
    export_onnx(model, X, path)
    return path


def test_a_file_computes_the_same_without_its_dead_channels(model, masks, tmp_path):
    path = exported(model, tmp_path / "m.onnx")
    before, size = open_session(path).run(None, {"input": X.numpy()})[0], path.stat().st_size
    kept = shrink_file(path, X, round_to=8)
    after = open_session(path).run(None, {"input": X.numpy()})[0]
    assert np.abs(after - before).max() <= 1e-6
    assert path.stat().st_size < size
    assert len(kept["0.weight.T"][1]) == 32


def test_removed_weights_that_are_cut_count_as_removed(model, masks, tmp_path):
    path = exported(model, tmp_path / "m.onnx")
    (whole, *_) = audit_zeros([Variant("m", path)], masks)["m"]
    kept = shrink_file(path, X, round_to=1)
    audits = audit_zeros([Variant("m", path)], masks, kept)["m"]
    for audit in audits:
        removed = int((~masks[audit.name]).sum())
        assert (audit.mask_zeros, audit.onnx_zeros, audit.optimized_zeros) == (removed,) * 3
        assert audit.intact
    assert (whole.cut, audits[0].cut, audits[2].cut) == (0, 60, 0)
    assert audits[1].cut == int((~masks["2.weight"][:, :10]).sum())


def test_a_zero_that_is_lost_in_a_smaller_file_is_found(model, masks, tmp_path):
    path = exported(model, tmp_path / "m.onnx")
    kept = shrink_file(path, X, round_to=1)
    graph = ir.load(path)
    value = graph.graph.initializers["2.weight.T"]
    array = value.const_value.numpy().copy()
    array[tuple(np.argwhere(array == 0)[0])] = 0.5
    value.const_value = ir.tensor(array, name=value.name)
    ir.save(graph, path)
    first, second, _ = audit_zeros([Variant("m", path)], masks, kept)["m"]
    assert first.intact
    assert not second.intact
    assert second.onnx_zeros == second.mask_zeros - 1


def test_a_file_without_dead_channels_keeps_its_bytes(model, tmp_path):
    path = exported(model, tmp_path / "m.onnx")
    before = path.read_bytes()
    assert not shrink_file(path, X, round_to=1)
    assert path.read_bytes() == before


def test_a_smaller_file_that_computes_something_else_is_refused(
    model, masks, tmp_path, monkeypatch
):
    path = exported(model, tmp_path / "m.onnx")
    before = path.read_bytes()

    def spoil(graph, **options):
        value = graph.graph.initializers["4.bias"]
        value.const_value = ir.tensor(value.const_value.numpy() + 0.01, name=value.name)
        return {"4.bias": (None,)}

    monkeypatch.setattr(file, "remove_dead_channels", spoil)
    with pytest.raises(ValueError, match=r"'output' differs by 0.01.*remove_dead: false"):
        shrink_file(path, X, round_to=1)
    assert path.read_bytes() == before
