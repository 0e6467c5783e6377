"""The marginalization model of digits: an exact model has no loss but the entropy."""

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from mfac_compress.recipes.models import mam_digits, train_mam_digits
from mfac_compress.recipes.models.mam_digits import PIXELS

RECIPES = Path(__file__).parents[2] / "recipes"


class Independent(nn.Module):
    """An exact model of independent pixels."""

    def __init__(self, log_odds):
        super().__init__()
        self.log_odds = nn.Parameter(log_odds)

    def forward(self, x):
        log_p = (F.logsigmoid(x * self.log_odds) * (x != 0)).sum(-1, keepdim=True)
        return torch.cat([log_p, self.log_odds.expand_as(x)], dim=-1)


def stacked(samples):
    questions, targets = zip(*samples, strict=True)
    return torch.stack(questions), {
        name: torch.stack([each[name] for each in targets]) for name in ("site", "value")
    }


@pytest.fixture(scope="module")
def exact():
    torch.manual_seed(0)
    return Independent(torch.randn(PIXELS, dtype=torch.float64))


@pytest.fixture(scope="module")
def images(exact):
    return (2 * torch.bernoulli(exact.log_odds.detach().sigmoid().expand(300, -1)) - 1).detach()


def test_both_ways_lead_to_the_probability_of_an_exact_model(exact, images):
    questions, targets = stacked(mam_digits.in_random_order(images))
    outputs = exact(questions).detach()
    bits = -F.logsigmoid(images * exact.log_odds).sum(1).detach() / (log(2) * PIXELS)
    torch.testing.assert_close(mam_digits.bits_per_dimension(outputs, targets), bits)
    torch.testing.assert_close(mam_digits.bits_by_marginals(outputs, targets), bits)
    assert mam_digits.inconsistency(outputs, targets).max() < 1e-12
    expected = 2 * bits.mean() * log(2) * PIXELS
    torch.testing.assert_close(mam_digits.loss(outputs, targets), expected)


def test_marginals_that_miss_the_chain_rule_are_seen(exact, images):
    questions, targets = stacked(mam_digits.in_random_order(images))
    outputs = exact(questions).detach()
    before = mam_digits.loss(outputs, targets)
    outputs[..., 0] += 0.1 * (questions != 0).sum(-1)  # 0.1 nats too many with each pixel
    torch.testing.assert_close(
        mam_digits.inconsistency(outputs, targets), torch.full((300,), 0.1, dtype=torch.float64)
    )
    change = mam_digits.PENALTY * 0.1**2 - 0.1 * PIXELS
    assert (mam_digits.loss(outputs, targets) - before).item() == pytest.approx(change)
    larger = outputs + 3.0  # p(no pixels) is not 1: taken out
    torch.testing.assert_close(
        mam_digits.bits_by_marginals(larger, targets),
        mam_digits.bits_by_marginals(outputs, targets),
    )


def test_the_training_loss_is_the_entropy_where_the_model_is_exact(exact, images):
    torch.manual_seed(0)
    many = images.repeat(10, 1)
    found = train_mam_digits.likelihood_loss(exact, many, images)
    expected = -F.logsigmoid(images * exact.log_odds).sum(1).mean()
    assert found.item() == pytest.approx(expected.item(), rel=0.01)


def test_the_penalty_does_not_teach_the_conditionals(images):
    model = mam_digits.mam(hidden=8).double()
    torch.manual_seed(0)
    train_mam_digits.likelihood_loss(model, images[:4], images[4:8]).backward()
    gradient = model.heads.bias.grad[1:].clone()
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_mam_digits, "PENALTY", 0.0)
        torch.manual_seed(0)
        train_mam_digits.likelihood_loss(model, images[:4], images[4:8]).backward()
    torch.testing.assert_close(gradient, model.heads.bias.grad[1:])
    assert not model.heads.bias.grad[0]


def test_the_probability_of_no_pixels_is_held_at_one(exact, images):
    def larger(x):
        answers = exact(x)
        return torch.cat([answers[..., :1] + 0.5, answers[..., 1:]], dim=-1)

    losses = []
    for model in (exact, larger):
        torch.manual_seed(0)
        losses.append(train_mam_digits.likelihood_loss(model, images[:9], images[9:20]).item())
    assert losses[1] - losses[0] == pytest.approx(mam_digits.PENALTY * 0.5**2)


def test_training_learns_what_independent_pixels_do_not_say():
    torch.manual_seed(0)
    train, held_out = mam_digits.digits()
    share = ((train > 0).double().mean(0) * len(train) + 1) / (len(train) + 2)
    independent = -torch.where(held_out > 0, share, 1 - share).log2().mean().item()
    model = mam_digits.mam(hidden=192)
    train_mam_digits.train(model, train, steps=100, batch=32)
    found = train_mam_digits.held_out(model)
    assert found["bits_per_dimension"] < independent
    assert found["inconsistency"] < 1


def test_the_shipped_model_has_its_metrics():
    model = mam_digits.mam()
    model.load_state_dict(load_file(RECIPES / "models" / "mam-digits.safetensors"))
    found = train_mam_digits.held_out(model)
    assert found["bits_per_dimension"] == pytest.approx(0.413, abs=0.001)
    assert found["bits_by_marginals"] == pytest.approx(0.426, abs=0.001)
    assert found["inconsistency"] == pytest.approx(0.163, abs=0.001)


def test_held_out_images_were_not_trained_on():
    train, held_out = (images.numpy() for images in mam_digits.digits())
    assert len(train) == 1200
    assert not {each.tobytes() for each in train} & {each.tobytes() for each in held_out}
    assert set(np.unique(held_out)) == {-1, 1}


def test_samples_are_the_same_in_every_call():
    state = torch.get_rng_state()
    for one, other in zip(
        mam_digits.samples().values(), mam_digits.samples().values(), strict=True
    ):
        assert torch.equal(one[7][0], other[7][0])
        assert not torch.equal(one[7][1]["site"], one[8][1]["site"])
    assert torch.equal(state, torch.get_rng_state())
