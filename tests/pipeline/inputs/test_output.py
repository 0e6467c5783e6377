"""A model's return value becomes a plain tree, or the one output that the recipe names."""

import collections
import copy
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.output import install_output, join_batches, plain_tree

ONE, TWO = torch.ones(2, 3), torch.zeros(2)


class ModelOutput(collections.OrderedDict):
    """As Hugging Face's: an ordered dict whose keys are attributes, without those that are None."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class Named(NamedTuple):
    logits: Any
    aux: Any


@dataclasses.dataclass
class Data:
    logits: Any
    hidden: Any = None


class Plain:
    def __init__(self):
        self.logits = ONE


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def returned(value, output=None):
    module = Returns(value)
    install_output(module, output)
    again = copy.deepcopy(module)(None)
    found = module(None)
    assert type(again) is type(found)
    return found


@pytest.mark.parametrize(
    "value",
    [
        ModelOutput(logits=ONE, hidden=[TWO]),
        collections.UserDict({"logits": ONE, "loss": None, "hidden": (TWO, None)}),
        Data(ONE, [TWO]),
        {"logits": ONE, "hidden": (TWO,)},
    ],
)
def test_whatever_has_names_becomes_a_dict(value):
    found = returned(value)
    assert type(found) is dict
    assert list(found) == ["logits", "hidden"]
    assert found["logits"] is ONE
    assert type(found["hidden"]) is tuple
    assert found["hidden"][0] is TWO


def test_lists_become_tuples_and_named_tuples_dicts():
    assert returned([ONE, TWO]) == (ONE, TWO)
    assert returned(Named(ONE, None)) == {"logits": ONE}
    assert returned(ONE) is ONE


@pytest.mark.parametrize(
    ("value", "output"),
    [
        ({"logits": ONE, "loss": TWO}, "logits"),
        (ModelOutput(logits=ONE), "logits"),
        (Data(ONE), "logits"),
        (Named(ONE, TWO), "logits"),
        (Plain(), "logits"),
        ((TWO, ONE), 1),
        ((TWO, {"deep": [None, ONE]}), "1.deep.1"),
    ],
)
def test_the_recipe_picks_an_output(value, output):
    assert returned(value, output) is ONE


@pytest.mark.parametrize(
    ("value", "output", "part"),
    [
        ({"logits": ONE, "loss": TWO}, "logit", "Got 'logit'. The model returns a dict, with log"),
        ((ONE, TWO), 2, "Got '2'. The model returns a tuple, with 0, 1."),
        (ONE, "logits", "The model returns a Tensor."),
        ({"a": {"b": ONE}}, "a.c", "Got 'a.c'. The model returns a dict as 'a', with b."),
        (Data(ONE), "hidden", "a Data, with logits"),
        ({}, None, "Got an empty dict. Set model.output"),
        ({"a": [ONE, 3]}, None, "Got an int as 'a.1'. Set model.output"),
        (Plain(), None, "Got a Plain."),
        (None, None, "Got a NoneType."),
    ],
)
def test_what_cannot_be_used_is_refused(value, output, part):
    with pytest.raises(InputError) as caught:
        returned(value, output)
    assert part in str(caught.value)


def test_batches_are_joined_where_their_shapes_allow_it():
    parts = [{"a": np.full((n, 2), n), "b": (np.arange(n),)} for n in (3, 1)]
    joined = join_batches(parts, "outputs")
    assert joined["a"].tolist() == [[3, 3]] * 3 + [[1, 1]]
    assert joined["b"][0].tolist() == [0, 1, 2, 0]
    parts[1]["a"] = np.ones((1, 5))
    with pytest.raises(
        InputError, match=r"outputs of one shape.*\[3, 2\].*\[1, 5\].*data\.collate"
    ):
        join_batches(parts, "outputs")


def test_a_tree_within_a_tree_is_named_in_messages():
    with pytest.raises(InputError, match=r"Got a str as 'x\.1\.y'"):
        plain_tree({"x": (ONE, {"y": "word"})})
