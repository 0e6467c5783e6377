"""A checkpoint comes back to the last bit, or not at all."""

import math

import pytest
import torch

from mfac_compress.pipeline.digest import file_digest
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.code_sources import CodeSources, forget_opened
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


@pytest.mark.parametrize("name", ["tensors.safetensors", "manifest.json"])
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
    assert checkpoints.rejected
    checkpoints.save(1, {"at": 1})
    assert checkpoints.load() == {"at": 1}


def test_a_checkpoint_is_of_one_key(tmp_path):
    Checkpoints(tmp_path / "one", "a").save(1, {"at": 1})
    (tmp_path / "one").rename(tmp_path / "other")
    assert Checkpoints(tmp_path / "other", "b").load() is None
    Checkpoints(tmp_path / "other", "a").save(1, {"at": 1})
    assert Checkpoints(tmp_path / "other", "a").load() == {"at": 1}


@pytest.fixture
def code(tmp_path):
    """Code that loads another file once the stock is taken, as in the middle of a stage."""
    forget_opened()
    (tmp_path / "schedule.txt").write_text("1")
    sources = CodeSources()
    with user_code(), open(tmp_path / "schedule.txt") as file:
        file.read()
    yield sources
    forget_opened()


@pytest.mark.parametrize("when", ["before it", "after it"])
def test_a_checkpoint_is_of_the_code_that_ran(tmp_path, code, when):
    checkpoints = Checkpoints(tmp_path / "unfinished", "a", code)
    own = str(tmp_path / "schedule.txt")
    if when == "before it":
        (tmp_path / "schedule.txt").write_text("10")
    checkpoints.save(1, {"at": 1})
    forget_opened()  # another process
    again = Checkpoints(tmp_path / "unfinished", "a", CodeSources())
    if when == "after it":
        assert again.load() == {"at": 1}
        assert again.code[own] == file_digest(own)
        (tmp_path / "schedule.txt").write_text("10")
    assert again.load() is None
    assert again.rejected == "code that it was made with has changed"


def test_a_tensor_that_shares_memory_is_written_by_itself(tmp_path):
    whole = torch.rand(4, 4)
    Checkpoints(tmp_path).save(1, {"whole": whole, "part": whole[1:3].mT, "again": whole})
    found = Checkpoints(tmp_path).load()
    assert torch.equal(found["part"], whole[1:3].mT)


def test_what_is_no_plain_value_is_refused(tmp_path):
    with pytest.raises(TypeError, match="tensors and plain values"):
        Checkpoints(tmp_path).save(1, {"x": object()})
