"""Items of the user's own data sets are trees: pairs or dicts, stacked or collated."""

import numpy as np
import pytest
import torch

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.data import load_data
from mfac_compress.pipeline.recipe.schema import FactoryData

OWN = """
import collections
import os
import random
import numpy as np
import torch

def three(item, count=4):
    splits = ("calibration", "recovery", "validation")
    return {split: [item(100 * at + n) for n in range(count)] for at, split in enumerate(splits)}

def tokens(n, length=5):
    return {"input_ids": [n + k for k in range(length)], "mask": np.ones(length, bool), "labels": n}

def same_length(): return three(tokens)
def other_target(): return three(lambda n: {"ids": [n, n], "answer": n})
def user_dicts(): return three(lambda n: collections.UserDict(tokens(n)))
def nested(): return three(lambda n: ((torch.tensor([n]), {"a": n + 0.5}), (n, [n, -100])))
def any_length(): return three(lambda n: tokens(n, 1 + n % 4))
def longer_by_split(): return three(lambda n: tokens(n, 2 + n // 100))
def first_shorter(): return three(lambda n: tokens(n, 1 + bool(n % 100)))
def other_keys(): return three(lambda n: {"x": n, **({"y": n} if n % 2 else {}), "labels": 0})
def strings(): return three(lambda n: {**tokens(n), "text": "words"})
def only_target(): return three(lambda n: {"labels": n})
def numbered(): return three(lambda n: ({n: n}, n))
def uneven(): return three(lambda n: ([[n], [n, n]], n))
def unlabelled():
    sets = three(tokens)
    for item in sets["calibration"]:
        del item["labels"]
    return sets

class Explodes(collections.UserDict):
    def __iter__(self):
        raise OSError("gone")

def explodes(): return three(lambda n: Explodes(tokens(n)))
def validation_repeats_calibration():
    sets = three(lambda n: tokens(n, 1 + n % 4), 8)
    sets["validation"][5] = dict(sets["calibration"][7])
    return sets
def validation_nan():
    sets = three(lambda n: {"x": {"deep": [float(n)]}, "labels": n})
    sets["validation"][2]["x"]["deep"] = [float("nan")]
    return sets

def pad(items):
    length = max(len(item["input_ids"]) for item in items)
    ids = [item["input_ids"] + [0] * (length - len(item["input_ids"])) for item in items]
    labels = torch.tensor([item.pop("labels") for item in items])
    return {"input_ids": torch.tensor(ids), "labels": labels}

def pad_inputs(items):
    batch = pad([{"labels": 0, **item} for item in items])
    return batch if "labels" in items[0] else {"input_ids": batch["input_ids"]}

def pad_left(items):
    length = max(len(item["input_ids"]) for item in items)
    ids = [[0] * (length - len(item["input_ids"])) + item["input_ids"] for item in items]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor([i["labels"] for i in items])}

def pad_by_environment(items):
    return (pad_left if os.environ.get("PAD") == "left" else pad)(items)

def as_pair(items):
    batch = pad(items)
    return batch["input_ids"], batch["labels"]

def masks_some(items):
    batch = pad(items)
    return {**batch, **({"mask": torch.ones(len(items), 1)} if batch["labels"][0] % 2 else {})}

def raises(items): raise KeyError("token")
def too_few(items): return torch.zeros(1, 2), torch.zeros(1)
def scalar(items): return torch.tensor(1), torch.zeros(len(items))
def words(items): return ["word"] * len(items)
def random_pad(items): return torch.rand(len(items), 2), torch.zeros(len(items))
def no_arguments(): return None
"""


def load(folder, name, *, needs_recovery=True, labelled=True, target="labels", **options):
    (folder / "own.py").write_text(OWN)
    collate = options.pop("collate", None)
    section = FactoryData(
        factory=f"own.py:{name}", collate=collate and f"own.py:{collate}", **options
    )
    return load_data(
        section, folder=folder, needs_recovery=needs_recovery, labelled=labelled, target=target
    )


def refusal(folder, name, **options):
    with pytest.raises(InputError) as caught:
        load(folder, name, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["same_length", "user_dicts"])
def test_a_dict_gives_its_target_and_the_rest_by_name(name, tmp_path):
    (batch,) = load(tmp_path, name).validation.batches(4, indices=[2, 0])
    assert isinstance(batch, Batch)
    assert list(batch.inputs) == ["input_ids", "mask"]
    assert batch.inputs["input_ids"].tolist() == [
        [202, 203, 204, 205, 206],
        [200, *range(201, 205)],
    ]
    assert batch.inputs["input_ids"].dtype == torch.int64
    assert batch.inputs["mask"].dtype == torch.bool
    assert batch.targets.tolist() == [202, 200]


def test_the_recipe_names_the_target(tmp_path):
    batch = next(load(tmp_path, "other_target", target="answer").validation.batches(2))
    assert list(batch.inputs) == ["ids"]
    assert batch.targets.tolist() == [200, 201]
    assert "must have 'labels', the target, and inputs. It has ids, answer. Set" in refusal(
        tmp_path, "other_target"
    )


def test_inputs_and_targets_may_be_nested(tmp_path):
    batch = next(load(tmp_path, "nested").validation.batches(2))
    first, second = batch.inputs
    assert first.tolist() == [[200], [201]]
    assert second["a"].dtype == torch.float32
    assert batch.targets[1].tolist() == [[200, -100], [201, -100]]


def test_collated_batches_are_padded_each_for_itself(tmp_path):
    data = load(tmp_path, "any_length", collate="pad")
    short, long = data.validation.batches(2)
    assert short.inputs["input_ids"].tolist() == [[200, 0], [201, 202]]
    assert long.inputs["input_ids"].shape == (2, 4)
    assert long.targets.tolist() == [202, 203]
    pair = next(load(tmp_path, "any_length", collate="as_pair").validation.batches(2))
    assert pair.inputs.tolist() == short.inputs["input_ids"].tolist()


def test_other_padding_is_other_data(tmp_path, monkeypatch):
    """Though each sample by itself has none, and one file may hold several functions."""

    def fingerprints(collate):
        return {split.fingerprint for split in load(tmp_path, "any_length", collate=collate)}

    right, left = fingerprints("pad"), fingerprints("pad_left")
    assert fingerprints("pad") == right
    assert not right & left
    right = fingerprints("pad_by_environment")
    monkeypatch.setenv("PAD", "left")
    assert not right & fingerprints("pad_by_environment")


def test_padding_hides_no_overlap_and_no_repetition(tmp_path):
    message = refusal(tmp_path, "validation_repeats_calibration", collate="pad")
    assert "calibration sample 7 (sample 7 of data.factory's 'calibration') = validation" in message
    assert "sample 5" in message


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1]])
def test_padded_validation_samples_are_the_same_at_every_reading(order, tmp_path):
    data = load(tmp_path, "any_length", collate="pad")
    for size in (1, 2, 3):
        assert sum(b.size for b in data.validation.batches(size, indices=order)) == 4
    assert "must stay the same" in refusal(tmp_path, "any_length", collate="random_pad")


def test_lengths_may_differ_between_splits_where_they_are_padded(tmp_path):
    data = load(tmp_path, "longer_by_split", collate="pad")
    lengths = [next(split.batches(2)).inputs["input_ids"].shape[1] for split in data]
    assert lengths == [2, 3, 4]
    assert "in all splits" in refusal(tmp_path, "longer_by_split")


def test_targets_may_be_missing_where_none_are_needed(tmp_path):
    data = load(tmp_path, "unlabelled", labelled=False, needs_recovery=False)
    assert next(data.calibration.batches(4)).targets.tolist() == [0] * 4
    assert "must have 'labels'" in refusal(tmp_path, "unlabelled")
    collated = {"collate": "pad_inputs", "needs_recovery": False, "labelled": False}
    data = load(tmp_path, "unlabelled", **collated)
    assert next(data.calibration.batches(3)).targets.tolist() == [0] * 3


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("any_length", {}, "or data.collate must pad them. 'calibration' has"),
        (
            "any_length",
            {},
            "has inputs.input_ids int64 [2], inputs.mask bool [2], targets int64 []",
        ),
        ("any_length", {}, "int64 [3], inputs.mask bool [3], targets int64 [] in sample 2"),
        ("other_keys", {}, "of one form"),
        ("first_shorter", {}, "targets int64 [] in sample 1 of data.factory's"),
        ("strings", {}, "Sample 0 of 'calibration' has a str as inputs.text"),
        ("only_target", {}, "the target, and inputs. It has labels"),
        ("numbered", {}, "keys are not all text"),
        ("uneven", {}, "has inputs that cannot be made a tensor"),
        ("explodes", {}, "raised OSError: gone (own.py"),
        ("validation_nan", {}, "finite inputs.x.deep"),
        ("any_length", {"collate": "masks_some"}, "inputs.mask float32 of 1 axes, targets"),
        ("any_length", {"collate": "raises"}, "raised KeyError: token (own.py"),
        ("any_length", {"collate": "too_few"}, "of n = 4 for samples 0..3 of 'calibration'"),
        ("any_length", {"collate": "scalar"}, "Got inputs int64 [], targets"),
        ("any_length", {"collate": "words"}, "is a list of 1, and neither"),
        ("any_length", {"collate": "missing"}, "has no 'missing'"),
        ("any_length", {"collate": "no_arguments"}, "must be a function of (items)"),
    ],
)
def test_items_that_cannot_be_used_are_refused(name, options, part, tmp_path):
    message = refusal(tmp_path, name, **options)
    assert part in message
    assert "data." in message


def test_the_samples_to_try_hold_the_extremes_of_every_input(tmp_path):
    data = load(tmp_path, "nested")
    # -100 is no class: the least of the others counts.
    assert data.validation.to_try == [0, 1, 3]


def test_a_sample_of_ignored_targets_alone_is_tried(tmp_path):
    (tmp_path / "ignored.py").write_text(
        "def splits():\n"
        "    target = lambda n: [-100, -100] if n == 205 else [n, -100]\n"
        "    return {split: [([100 * at + n], target(100 * at + n)) for n in range(9)]\n"
        "            for at, split in enumerate(('calibration', 'recovery', 'validation'))}\n"
    )
    section = FactoryData(factory="ignored.py:splits")
    data = load_data(section, folder=tmp_path, needs_recovery=True)
    assert 5 in data.validation.to_try


def test_several_named_arrays_are_a_dict(tmp_path):
    from mfac_compress.pipeline.recipe.schema import ArraysData

    random = np.random.default_rng(0)
    arrays = {
        "input_ids": random.integers(0, 99, (30, 7)),
        "attention_mask": np.ones((30, 7), np.int64),
        "pixels": random.random((30, 2)),
        "labels": np.arange(30),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    splits = {
        name: {"path": "a.npz", "rows": [10 * at, 10 * at + 10]}
        for at, name in enumerate(("calibration", "recovery", "validation"))
    }
    names = ["input_ids", "attention_mask", "pixels"]
    section = {"source": "arrays", "splits": splits, "x": names, "y": "labels"}
    data = load_data(ArraysData.model_validate(section), folder=tmp_path, needs_recovery=True)
    (batch,) = data.validation.batches(3, indices=[4, 2])
    for name in names:
        assert np.allclose(batch.inputs[name], arrays[name][[24, 22]])
    assert [t.dtype for t in batch.inputs.values()] == [torch.int64, torch.int64, torch.float32]
    assert batch.targets.tolist() == [24, 22]
    with pytest.raises(ValueError, match="must be one name where layout"):
        ArraysData.model_validate({**section, "divide_by": 2})
    with pytest.raises(ValueError, match="must not repeat 'pixels'"):
        ArraysData.model_validate({**section, "x": ["pixels", "pixels"]})
    np.savez(tmp_path / "a.npz", **{**arrays, "pixels": arrays["pixels"][:29]})
    with pytest.raises(InputError, match="30 of 'attention_mask' and 29 of 'pixels'"):
        load_data(ArraysData.model_validate(section), folder=tmp_path, needs_recovery=True)
