"""A checkpoint comes back to the last bit, or not at all."""

import math

import pytest
import torch

from mfac_compress.pipeline.run.checkpoint import Checkpoints

CONTENT = {
    "losses": [0.1, 1e-300, math.inf],
    "state": {0: {"step": torch.tensor(3.0), "tiles": [torch.rand(2, 3), torch.rand(2, 1)]}},
    "random": (3, (1, 2**63), None, True),
    "half": torch.rand(3).to(torch.bfloat16),
    "bytes": torch.arange(8, dtype=torch.uint8),
    "none": None,
}


def _same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def test_a_tree_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path / "unfinished")
    assert checkpoints.load() is None
    checkpoints.save(1, CONTENT)
    assert _same(checkpoints.load(), CONTENT)


def test_the_newest_replaces_the_one_before_and_what_a_killed_run_left(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"at": 1})
    (tmp_path / ".writing-x").mkdir()
    checkpoints.save(2, {"at": 2})
    assert checkpoints.load() == {"at": 2}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["tensors.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_none(tmp_path, name, damage):
    checkpoints = Checkpoints(tmp_path / "unfinished")
    checkpoints.save(1, {"x": torch.arange(100), "at": 1})
    (file,) = (tmp_path / "unfinished").glob(f"*/{name}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: None if damage == "flip" else len(content) // 2])
    assert checkpoints.load() is None
    checkpoints.save(1, {"at": 1})
    assert checkpoints.load() == {"at": 1}


def test_a_tensor_that_shares_memory_is_written_by_itself(tmp_path):
    whole = torch.rand(4, 4)
    Checkpoints(tmp_path).save(1, {"whole": whole, "part": whole[1:3].mT, "again": whole})
    found = Checkpoints(tmp_path).load()
    assert torch.equal(found["part"], whole[1:3].mT)


def test_what_is_no_plain_value_is_refused(tmp_path):
    with pytest.raises(TypeError, match="tensors and plain values"):
        Checkpoints(tmp_path).save(1, {"x": object()})
