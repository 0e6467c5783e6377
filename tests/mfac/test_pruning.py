"""Pruning as one function: pure, exact counts, the same over several processes."""

from itertools import pairwise

import pytest
import torch

from mfac_compress.mfac import (
    BlockPartition,
    Unstructured,
    empty_fisher,
    fisher_of,
    invert,
    prune,
    prune_by_magnitude,
)
from mfac_compress.mfac.process_group import shard_columns
from mfac_compress.mfac.update import remove_weights

D = 24


@pytest.fixture
def weights():
    return torch.randn(D, generator=torch.Generator().manual_seed(1))


def _units(sparsity=0.5):
    return Unstructured().resolve({"w": (D,)}, sparsity)[1]


@pytest.mark.parametrize("blocks", [None, 6])
def test_the_cheapest_weights_go_and_the_others_make_up_for_them(weights, gradients, blocks):
    inverse, units = invert(fisher_of(gradients(12, D), blocks), 1e-3), _units()

    pruned = prune(weights, inverse, units, selection="independent")

    assert int((~pruned.mask).sum()) == D // 2
    assert pruned.costs[~pruned.mask].max() <= pruned.costs[pruned.mask].min()
    torch.testing.assert_close(pruned.costs, weights.square() / (2 * inverse.diagonal()))
    assert torch.equal(pruned.weights, remove_weights(weights, pruned.mask, inverse, "joint"))
    assert pruned.sparsity == 0.5


def test_nothing_that_is_passed_in_changes(weights, gradients):
    inverse, units, keep = invert(fisher_of(gradients(12, D))), _units(), torch.arange(D) > 3
    before = weights.clone(), keep.clone(), inverse.diagonal()

    pruned = prune(weights, inverse, units, keep=keep)

    assert not pruned.mask[:4].any()
    for value, expected in zip((weights, keep, inverse.diagonal()), before, strict=True):
        assert torch.equal(value, expected)


def test_one_inverse_serves_many_removals_each_within_the_next(weights, gradients):
    inverse, units = invert(fisher_of(gradients(12, D)), 1e-3), _units()

    masks = [prune(weights, inverse, units, removed=torch.tensor([n])).mask for n in (3, 8, 20)]

    assert [int((~mask).sum()) for mask in masks] == [3, 8, 20]
    assert all((later <= earlier).all() for earlier, later in pairwise(masks))


def test_selection_is_sequential_by_default_where_it_can_be(weights, gradients):
    G, units = gradients(12, D), _units()
    blocks, whole = invert(fisher_of(G, 6), 1e-3), invert(fisher_of(G), 1e-3)

    def costs(inverse, selection=None):
        return prune(weights, inverse, units, selection=selection).costs

    assert torch.equal(costs(blocks), costs(blocks, "sequential"))
    assert not torch.equal(costs(blocks), costs(blocks, "independent"))
    assert torch.equal(costs(whole), costs(whole, "independent"))
    with pytest.raises(ValueError, match=r"up to 24 and 12 gradients"):
        costs(whole, "sequential")


def test_by_magnitude_the_smallest_go_and_nothing_else_changes(weights):
    pruned = prune_by_magnitude(weights, _units(), keep=torch.arange(D) > 1)

    assert int((~pruned.mask).sum()) == D // 2
    assert not pruned.mask[:2].any()
    assert weights[2:][~pruned.mask[2:]].abs().max() < weights[pruned.mask].abs().min()
    assert torch.equal(pruned.weights, weights * pruned.mask)


@pytest.mark.parametrize("block_size", [None, 4])
def test_several_processes_get_the_result_of_one(weights, gradients, on_all_ranks, block_size):
    partition, units, G = BlockPartition.contiguous(D, block_size), _units(), gradients(12, D)
    keep = torch.arange(D) % 5 > 0

    def one_of(shard, group):
        fisher = empty_fisher(partition, len(G), shard=shard, group=group)
        fisher.add(G[:, shard.columns])
        inverse = invert(fisher, 1e-3)
        return prune(weights, inverse, units, keep=keep, columns=shard.columns, group=group)

    whole = prune(weights, invert(fisher_of(G, partition), 1e-3), units, keep=keep)
    shards = shard_columns(partition, 3, within_blocks=block_size is None)
    for pruned in on_all_ranks(lambda group: one_of(shards[group.rank], group)):
        assert torch.equal(pruned.mask, whole.mask)
        torch.testing.assert_close(pruned.weights, whole.weights)


def test_an_error_of_one_process_is_raised_by_all(weights, gradients, on_all_ranks):
    inverse, units = invert(fisher_of(gradients(12, D)), 1e-3), _units()

    def work(group):
        columns = slice(0, D if group.rank else D - 1)  # rank 0's are too few for the inverse
        with pytest.raises(RuntimeError, match=r"size of tensor a \(23\)"):
            prune(weights, inverse, units, columns=columns, group=group)

    on_all_ranks(work)
