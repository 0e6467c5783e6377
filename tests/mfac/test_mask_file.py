"""A file of masks is taken whole, or refused with everything that does not fit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mfac_compress.mfac.mask_file import load_masks
from mfac_compress.mfac.masking import MaskHooks


def _net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


MASKS = {"0.weight": torch.rand(6, 4) > 0.5, "2.weight": torch.rand(2, 6) > 0.5}


@pytest.fixture
def file(tmp_path):
    def write(masks):
        save_file(masks, tmp_path / "masks.safetensors")
        return tmp_path / "masks.safetensors"

    return write


def test_what_was_saved_is_read(file):
    found = load_masks(file(MASKS), dict(_net().named_parameters()))
    assert found.keys() == MASKS.keys()
    assert all(torch.equal(found[name], mask) for name, mask in MASKS.items())


def test_masks_stay_what_they_were_when_their_file_is_written_to(file):
    path, parameters = file(MASKS), dict(_net().named_parameters())
    found = load_masks(path, parameters)
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(size - sum(mask.numel() for mask in MASKS.values()))
        stream.write(b"\1" * (size - stream.tell()))
    assert all(torch.equal(found[name], mask) for name, mask in MASKS.items())
    assert all(mask.all() for mask in load_masks(path, parameters).values())


def test_every_mask_that_does_not_fit_is_named_and_no_weight_is_touched(file):
    net = _net()
    before = net[0].weight.detach().clone()
    wrong = {
        "0.weight": MASKS["0.weight"],
        "2.weight": torch.ones(6, 2, dtype=torch.bool),
        "2.bias": torch.ones(2),
        **{f"layer{i}.weight": torch.ones(1, dtype=torch.bool) for i in range(20)},
    }
    with pytest.raises(ValueError, match="22 of 23 do not fit") as refusal:
        MaskHooks.load(file(wrong), net)
    text = str(refusal.value)
    assert "2.weight: [6, 2] for [2, 6]" in text
    assert "2.bias: float32, not bool" in text
    assert all(f"layer{i}.weight: the model has no such parameter" in text for i in range(20))
    assert " 0.weight:" not in text
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("prefix", "advice"), [("module", "DistributedDataParallel"), ("_orig_mod", "torch.compile")]
)
def test_a_wrapper_around_the_model_is_named(file, prefix, advice):
    wrapped = nn.ModuleDict({prefix: _net()})
    with pytest.raises(ValueError, match=f"wrapped by {advice}"):
        MaskHooks.load(file(MASKS), wrapped)


def test_a_file_of_something_else_is_refused(tmp_path, file):
    parameters = dict(_net().named_parameters())
    with pytest.raises(ValueError, match="cannot be read \\(FileNotFoundError"):
        load_masks(tmp_path / "nowhere.safetensors", parameters)
    (tmp_path / "text.safetensors").write_text("masks")
    with pytest.raises(ValueError, match="cannot be read \\(SafetensorError"):
        load_masks(tmp_path / "text.safetensors", parameters)
    with pytest.raises(ValueError, match=r"must hold masks\. It is empty"):
        load_masks(file({}), parameters)
