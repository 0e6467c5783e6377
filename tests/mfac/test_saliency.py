"""Costs of removing sets of weights, against dense matrices in float64."""

import pytest
import torch

from mfac_compress.mfac import Block, empty_fisher, fisher_of, invert, prune
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.process_group import shard_columns
from mfac_compress.mfac.saliency import magnitude_costs, unit_costs
from mfac_compress.mfac.units import Units

D = 24
# Units of 2, 3 and 1 weights, and one whose weights are not adjacent.
UNEVEN = torch.tensor([0, 0, 1, 1, 1, 2, 3, 4, 4, 3, *range(5, 19)])


def _dense_costs(F, w, of_weight):
    """½ w_Qᵀ ([F⁻¹]_QQ)⁻¹ w_Q of each unit."""
    P, costs = torch.linalg.inv(F), []
    for number in of_weight.unique():
        Q = (of_weight == number).nonzero().flatten()
        costs.append(0.5 * w[Q] @ torch.linalg.solve(P[Q][:, Q], w[Q]))
    return torch.stack(costs)


def _uneven():
    return Units(UNEVEN, torch.zeros(19, dtype=torch.int32), torch.tensor([0.5]).double())


@pytest.mark.parametrize("block_size", [None, 12, 8])
@pytest.mark.parametrize("m", [6, 40])
@pytest.mark.parametrize("damping", [1e-2, 1e-6])
def test_costs_of_units_are_those_of_dense_matrices(
    gradients, dense_fisher, block_size, m, damping
):
    G, w, keep = gradients(m, D), torch.randn(D), torch.ones(D, dtype=torch.bool)
    inverse, F = invert(fisher_of(G, block_size), damping), dense_fisher(G, damping, block_size)
    units = Block(4, 0).resolve({"w": (8, 3)}, 0.5)[1] if block_size == 8 else _uneven()

    costs = unit_costs(w, inverse, units, keep)

    expected = _dense_costs(F, w.double(), units.of_weight)
    torch.testing.assert_close(costs.double(), expected, rtol=1e-5, atol=1e-9)


def test_the_cost_of_a_unit_is_the_loss_of_its_removal(gradients, dense_fisher):
    G, w = gradients(10, D), torch.randn(D)
    inverse, F = invert(fisher_of(G), 1e-2), dense_fisher(G, 1e-2)
    units = Block(4, 1).resolve({"w": (3, 8)}, 1 / 6)[1]

    pruned = prune(w, inverse, units)

    delta = (pruned.weights - w).double()
    assert int((~pruned.mask).sum()) == 4
    assert (0.5 * delta @ F @ delta).item() == pytest.approx(pruned.costs.min().item(), rel=1e-4)


def test_units_that_blocks_of_the_fisher_divide_cost_what_they_do_with_that_fisher(gradients):
    w = torch.randn(D, generator=torch.Generator().manual_seed(0))
    units = Block(4, 0).resolve({"w": (8, 3)}, 0.5)[1]
    scattered = Units(torch.randperm(D) % 5, torch.zeros(5, dtype=torch.int32), units.sparsity)
    for m in (4, 40):
        inverse = invert(fisher_of(gradients(m, D), 6), 1e-2)
        elements = range(D)
        dense = torch.tensor([[inverse.element(j, k) for k in elements] for j in elements]).double()
        for each in (units, scattered):
            costs = unit_costs(w, inverse, each, torch.ones(D, dtype=torch.bool))
            for number in range(each.count):
                at = each.of_weight == number
                of_unit = w[at].double()
                expected = of_unit @ torch.linalg.inv(dense[at][:, at]) @ of_unit / 2
                assert costs[number].item() == pytest.approx(expected.item(), rel=1e-4)


def test_sequential_selection_is_refused_for_units_of_several_weights(gradients):
    inverse, keep = invert(fisher_of(gradients(40, D), 8)), torch.ones(D, dtype=torch.bool)
    with pytest.raises(ValueError, match="units of one weight"):
        unit_costs(torch.randn(D), inverse, _uneven(), keep, "sequential")


def test_magnitudes_of_a_unit_add_up():
    costs = magnitude_costs(
        torch.tensor([-3.0, 2.0, 1.0]),
        Units(torch.tensor([0, 1, 0]), torch.zeros(2, dtype=torch.int32), torch.tensor([0.5])),
    )
    assert costs.tolist() == [10.0, 4.0]


@pytest.mark.parametrize("block_size", [None, 8])
def test_blocks_are_removed_alike_by_several_processes(gradients, on_all_ranks, block_size):
    G, w = gradients(12, D), torch.randn(D, generator=torch.Generator().manual_seed(0))
    partition = BlockPartition.contiguous(D, block_size)
    units = Block(2, 0).resolve({"w": (8, 3)}, 0.5)[1]
    shards = shard_columns(partition, 3, within_blocks=block_size is None)

    def one_of(group):
        shard = shards[group.rank]
        fisher = empty_fisher(partition, len(G), shard=shard, group=group)
        fisher.add(G[:, shard.columns])
        return prune(w, invert(fisher, 1e-3), units, columns=shard.columns, group=group)

    whole = prune(w, invert(fisher_of(G, partition), 1e-3), units)
    for pruned in on_all_ranks(one_of):
        assert torch.equal(pruned.mask, whole.mask)
        torch.testing.assert_close(pruned.weights, whole.weights)
