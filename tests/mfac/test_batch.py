import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.mfac.batch import (
    Batch,
    call,
    concatenate,
    map_tensors,
    named_tensors,
    size,
    stack,
)

TREE = {"ids": torch.arange(6).view(3, 2), "pair": (torch.ones(3), torch.zeros(3, 1))}


class Keywords(nn.Module):
    def forward(self, ids, pair):
        return ids.sum(1) + pair[0]


def test_a_dict_is_passed_by_keyword_and_a_tuple_by_position():
    expected = torch.tensor([2.0, 6.0, 10.0])
    assert torch.equal(call(Keywords(), TREE), expected)
    assert torch.equal(call(Keywords(), (TREE["ids"], TREE["pair"])), expected)
    assert torch.equal(call(nn.Identity(), TREE["ids"]), TREE["ids"])


def test_mapping_keeps_form_and_order():
    doubled = map_tensors(lambda t: 2 * t, TREE)
    assert list(doubled) == ["ids", "pair"]
    assert isinstance(doubled["pair"], tuple)
    assert torch.equal(doubled["ids"], 2 * TREE["ids"])
    assert [name for name, _ in named_tensors(doubled)] == ["ids", "pair.0", "pair.1"]


def test_a_lone_tensor_is_a_tree():
    tensor = torch.ones(4, 2)
    assert size(tensor) == 4
    assert dict(named_tensors(tensor))[""] is tensor
    assert torch.equal(map_tensors(torch.neg, tensor), -tensor)


@pytest.mark.parametrize(
    "other", [torch.ones(3), (TREE["ids"],), {"ids": TREE["ids"]}, {**TREE, "more": torch.ones(3)}]
)
def test_trees_of_different_forms_do_not_combine(other):
    with pytest.raises(ValueError, match="same form"):
        map_tensors(torch.add, TREE, other)


@pytest.mark.parametrize("tree", [{}, (torch.ones(2), torch.ones(3)), torch.tensor(1.0)])
def test_a_batch_without_one_number_of_samples_is_refused(tree):
    with pytest.raises(ValueError, match="same number of samples"):
        size(tree)


def test_rows_and_concatenation_are_inverse():
    batch = Batch(TREE, torch.arange(3))
    again = concatenate([batch.rows(slice(0, 1)), batch.rows(slice(1, None))])
    assert isinstance(again, Batch)
    assert again.size == 3
    for (_, a), (_, b) in zip(named_tensors(batch), named_tensors(again), strict=True):
        assert torch.equal(a, b)


def test_stacking_adds_a_dimension_in_front():
    stacked = stack([TREE, TREE])
    assert stacked["ids"].shape == (2, 3, 2)
    assert stacked["pair"][0].shape == (2, 3)


def test_mapping_takes_arrays_too():
    assert map_tensors(np.ndarray.tolist, (np.ones(1),)) == ([1.0],)
