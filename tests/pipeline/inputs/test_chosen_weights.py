"""Of a checkpoint's entries those are taken that are meant; where two could be, the recipe says."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.chosen_weights import choose_weights

PATH = Path("model.pt")


def weights(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)).state_dict()


def refusal(loaded, wanted=None):
    with pytest.raises(InputError) as caught:
        choose_weights(loaded, wanted, PATH)
    return str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "ema"),
        ("model", "model_ema"),
        ("model", "ema_state_dict"),
        ("model", "averaged_model"),
        ("model", "swa_model"),
        ("state_dict", "current_model_state"),
        ("model", "best"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"module": s, "decay": 0.99}])
def test_two_sets_of_the_same_weights_are_asked_about(one, other, wrap):
    raw, averaged = weights(0), weights(1)
    loaded = {one: raw, other: wrap(averaged), "epoch": 3, "optimizer": {"state": {}}}
    message = refusal(loaded)
    assert one in message
    assert other in message
    assert "model.weights" in message
    assert choose_weights(loaded, one, PATH).weights is raw


def test_the_named_weights_are_taken_and_their_key_is_given():
    raw, averaged = weights(0), weights(1)
    loaded = {"model": {"state_dict": raw, "state_dict_ema": averaged}}
    for key, expected in (("model.state_dict", raw), ("model.state_dict_ema", averaged)):
        chosen = choose_weights(loaded, key, PATH)
        assert chosen.weights is expected
        assert chosen.key == key


def test_a_key_that_holds_dots_itself_is_found():
    inner = weights()
    assert choose_weights({"a.b": {"c": inner}}, "a.b.c", PATH).weights is inner


def test_averages_in_a_list_are_noticed_and_the_raw_ones_can_be_confirmed():
    raw = weights()
    loaded = {"model": raw, "shadow_params": list(weights(1).values())}
    assert "shadow_params" in refusal(loaded)
    assert choose_weights(loaded, "model", PATH).weights is raw


@pytest.mark.parametrize(
    "beside",
    [
        {"epoch": 3, "loss_avg": torch.tensor(0.5)},
        {"optimizer": {"state": {"exp_avg": weights(1)}}},
        {"model_ema": {}},
        {"ema": None},
        {"discriminator": nn.Conv2d(3, 5, 3).state_dict()},
    ],
)
def test_what_is_no_second_set_is_passed_over(beside):
    raw = weights()
    chosen = choose_weights({"model": raw, **beside}, None, PATH)
    assert chosen.weights is raw
    assert chosen.key == "model"


def test_weights_at_the_top_have_no_key():
    assert choose_weights(weights(), None, PATH).key is None


def test_a_key_that_is_not_there_is_named_with_those_that_are():
    loaded = {"model": weights(), "other": {"ema": weights(1)}}
    message = refusal(loaded, "emma")
    assert "'emma'" in message
    assert "model, other.ema" in message
    assert "model.weights" in refusal({"generator": weights(), "critic": weights(1)})


def test_a_checkpoint_that_contains_itself_ends():
    loaded = {}
    loaded["model"] = loaded
    assert "must hold one state_dict" in refusal(loaded)
    looped = {"model": weights(), "ema": [weights(1)]}
    looped["ema"].append(looped)
    assert "ema" in refusal(looped)
