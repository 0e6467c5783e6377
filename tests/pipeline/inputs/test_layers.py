"""Patterns find layers, by module or parameter name, or say what is near."""

import pytest
import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.layers import match_targets
from mfac_compress.pipeline.recipe.schema import Recipe


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.layer1 = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.layer2 = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4, bias=False))
        self.attention = nn.MultiheadAttention(8, 2)


def _match(**prune):
    recipe = Recipe.model_validate(
        {"data": {"source": "digits"}, "prune": {"sparsity": 0.5} | prune}
    )
    return match_targets(Net(), recipe)


def _names(targets):
    return [target.name for target in targets.matched]


EVERYTHING = [
    "layer1.0.weight",
    "layer2.0.weight",
    "layer2.1.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
]


def test_by_default_all_linear_and_convolution_weights():
    targets = _match()
    assert _names(targets) == EVERYTHING
    assert targets.left_out["embed.weight"] == "not a linear or convolution weight (Embedding)"
    assert targets.left_out["layer1.1.weight"].endswith("(BatchNorm2d)")
    assert targets.left_out["layer2.0.bias"] == "a bias"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("layer2.0", ["layer2.0.weight"]),
        ("layer2.0.weight", ["layer2.0.weight"]),
        ("layer2.*", ["layer2.0.weight", "layer2.1.weight"]),
        ("layer[12].0", ["layer1.0.weight", "layer2.0.weight"]),
        (r"re:layer\d\.0", ["layer1.0.weight", "layer2.0.weight"]),
        ("re:.*proj.*", ["attention.in_proj_weight", "attention.out_proj.weight"]),
    ],
)
def test_names_globs_and_expressions(pattern, names):
    assert _names(_match(include=[pattern])) == names
    assert _names(_match(exclude=[pattern])) == [n for n in EVERYTHING if n not in names]


def test_left_out_says_which_key_left_it_out():
    targets = _match(include=["layer2.*"], exclude=["layer2.1"])
    assert targets.left_out["layer2.1.weight"] == "prune.exclude: layer2.1"
    assert targets.left_out["layer1.0.weight"] == "not matched by prune.include"


def test_overrides_compete_alone_and_the_last_one_counts():
    targets = _match(overrides={"layer2.*": 0.25, "layer2.1": 0.75})

    by_name = {target.name: target for target in targets.matched}
    assert by_name["layer2.0.weight"].sparsity == 0.25
    assert by_name["layer2.1.weight"].sparsity == 0.75
    bounds = {t.name: slice(t.start, t.stop) for t in targets.layout}
    competition = {name: targets.units.competition[at].unique() for name, at in bounds.items()}
    assert targets.units.sparsity.tolist() == [0.5, 0.25, 0.75]
    assert [int(competition[name]) for name in EVERYTHING] == [0, 1, 2, 0, 0]


def test_layerwise_lets_every_tensor_compete_alone():
    units = _match(scope="layerwise").units
    assert units.sparsity.tolist() == [0.5] * len(EVERYTHING)
    assert len(units.competition.unique()) == len(EVERYTHING)


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_without_a_match_names_near_ones(key):
    with pytest.raises(InputError) as error:
        _match(**{key: ["layer2.O"]})

    message = str(error.value)
    assert message.startswith(f"prune.{key}[0]: a pattern must match")
    assert "'layer2.O', which matches nothing. Did you mean" in message
    assert "layer2.0" in message


def test_an_override_without_a_match_is_an_error():
    with pytest.raises(InputError, match=r"prune\.overrides.*'fc'.*matches nothing"):
        _match(overrides={"fc": 0.1})


def test_a_pattern_of_what_can_not_be_pruned_says_why():
    with pytest.raises(InputError, match=r"matches only.*embed\.weight \(not a linear"):
        _match(include=["embed"])


def test_nothing_left_to_prune_is_an_error():
    with pytest.raises(InputError, match="all 5 excluded"):
        _match(exclude=["re:.*"])


def test_an_exported_program_is_matched_by_its_graph():
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    module = torch.export.export(net, (torch.ones(2, 1, 6),)).module()
    recipe = Recipe.model_validate({"data": {"source": "digits"}, "prune": {"sparsity": 0.5}})

    assert _names(match_targets(module, recipe)) == ["0.weight", "3.weight"]


@pytest.mark.parametrize(
    "prune",
    [
        {"overrides": {"layer2.0": 0.9, "layer2.*": 0.1}},
        {"overrides": {"layer2.0": 0.9}, "exclude": ["layer2.0.weight"]},
        {"overrides": {"layer2.0": 0.9}, "include": ["layer1.*"]},
    ],
    ids=["a later override", "an exclusion", "an inclusion"],
)
def test_an_override_that_sets_nothing_is_refused(prune):
    with pytest.raises(InputError, match=r"prune\.overrides\['layer2\.0'\].*must set the sparsity"):
        _match(**prune)


def test_of_overrides_the_general_one_comes_first():
    targets = _match(overrides={"layer2.*": 0.1, "layer2.0": 0.9})
    assert {t.name: t.sparsity for t in targets.matched}["layer2.0.weight"] == 0.9


def test_what_is_left_out_anyway_may_be_excluded():
    assert _names(_match(exclude=["embed", "layer1.1"])) == EVERYTHING


def test_d_and_n_are_those_of_the_model():
    targets = _match(include=["layer2.*"])
    assert targets.weights == 8 * 4 + 4 * 4
    assert targets.parameters == sum(p.numel() for p in Net().parameters())


def test_matched_tensors_can_be_left_out_later():
    targets = _match().without({"layer1.0.weight": "takes no part"})
    assert _names(targets) == EVERYTHING[1:]
    assert targets.left_out["layer1.0.weight"] == "takes no part"
    with pytest.raises(InputError, match=r"Got none: layer1\.0\.weight \(takes no part\)"):
        _match(include=["layer1.0"]).without({"layer1.0.weight": "takes no part"})


def test_a_model_without_anything_to_prune_is_refused():
    recipe = Recipe.model_validate({"data": {"source": "digits"}, "prune": {"sparsity": 0.5}})
    with pytest.raises(InputError, match=r"must have a weight of.*Got none: weight \(not a linear"):
        match_targets(nn.Embedding(3, 2), recipe)
