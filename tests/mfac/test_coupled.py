"""Whole channels: what they consist of, what they cost, and what goes with them."""

import pytest
import torch

from mfac_compress.mfac import fisher_of, invert, prune, prune_by_magnitude
from mfac_compress.mfac.coupled import Channel, Channels

SHAPES = {"a": (4, 3), "b": (5, 4), "c": (2, 4), "d": (6, 5)}
"""a makes four channels that b and c read; b makes five that d reads."""


def _channel(number, reads, computes, group):
    return Channel(
        tuple((name, 1, (number,)) for name in reads),
        tuple((name, 0, (number,)) for name in computes),
        group,
    )


PATTERN = Channels(
    tuple(_channel(i, "bc", "a", 0) for i in range(4))
    + tuple(_channel(i, "d", "b", 1) for i in range(5))
)


@pytest.fixture
def weights():
    return torch.randn(70, generator=torch.Generator().manual_seed(0))


def test_all_weights_that_read_a_channel_are_one_unit():
    layout, units = PATTERN.resolve(SHAPES, 0.5)
    of_weight = layout.unflatten(units.of_weight)
    assert len(of_weight["b"][:, 1].unique()) == 1
    assert of_weight["b"][0, 1] == of_weight["c"][0, 1]
    assert of_weight["b"][0, 1] != of_weight["b"][0, 2]
    assert units.count == 12 + 4 + 5  # those that read the model's input stay by themselves
    assert (layout.unflatten(units.freed_by)["a"] == of_weight["b"][0][:, None]).all()
    first = [int((units.of_weight == number).nonzero()[0]) for number in range(units.count)]
    assert first == sorted(first)


def test_a_channel_goes_with_what_reads_and_what_makes_it(weights):
    layout, units = PATTERN.resolve(SHAPES, 0.5)
    pruned = prune_by_magnitude(weights, units)
    masks = layout.unflatten(pruned.mask)
    read, made = masks["b"].any(0), masks["a"].any(1)
    assert torch.equal(read, masks["c"].any(0))
    assert torch.equal(read, made)
    assert torch.equal(masks["d"].any(0), masks["b"].any(1))
    assert int((~read).sum() + (~masks["d"].any(0)).sum()) == 5  # of nine, rounded up
    assert torch.equal(masks["a"], made[:, None].expand(4, 3))
    assert not pruned.weights[~pruned.mask].any()


def test_groups_of_tensors_with_their_own_sparsity_lose_that_share(weights):
    layout, units = PATTERN.resolve(SHAPES, 0.5, {"b": 0.25, "c": 0.25, "d": 0.6})
    masks = layout.unflatten(prune_by_magnitude(weights, units).mask)
    assert int(masks["a"].any(1).sum()) == 3
    assert int(masks["b"].any(1).sum()) == 2


def test_tensors_that_read_the_same_channels_have_the_same_sparsity():
    with pytest.raises(ValueError, match=r"0\.3 for c and 0\.25"):
        PATTERN.resolve(SHAPES, 0.5, {"b": 0.25, "c": 0.3})


def test_a_channel_stays_where_not_all_its_readers_are_pruned(weights):
    shapes = {name: SHAPES[name] for name in "abd"}
    layout, units = PATTERN.resolve(shapes, 0.5)
    masks = layout.unflatten(prune_by_magnitude(weights[: layout.size], units).mask)
    assert masks["a"].all()
    assert not masks["d"].all()


def test_what_is_freed_costs_nothing_and_is_not_made_up_for(weights):
    generator = torch.Generator().manual_seed(1)
    layout, units = PATTERN.resolve(SHAPES, 0.5)
    inverse = invert(fisher_of(torch.randn(30, 70, generator=generator), 16), 1e-2)
    pruned = prune(weights, inverse, units)
    channels = units.freed_by.unique()[1:]
    left = units.of_weight[pruned.mask].unique()
    gone = torch.isin(units.of_weight, channels) & ~torch.isin(units.of_weight, left)
    # Only what read the channels counts in the update.
    expected = inverse.joint_update(weights, ~gone)
    torch.testing.assert_close(pruned.weights[pruned.mask], expected[pruned.mask])
    freed = layout.unflatten(~pruned.mask)["a"].all(1)
    assert torch.equal(freed, ~layout.unflatten(pruned.mask)["b"].any(0))


def test_steps_remove_more_of_the_same(weights):
    _, units = PATTERN.resolve(SHAPES, 0.5)
    shares = torch.full_like(units.sparsity, 0.25).where(units.sparsity > 0, 0.0)
    first = prune_by_magnitude(weights, units, removed=units.removed(shares))
    second = prune_by_magnitude(first.weights, units, keep=first.mask)
    assert not (second.mask & ~first.mask).any()
    assert second.sparsity > first.sparsity > 0
