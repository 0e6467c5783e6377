"""Columns sharded over several processes give the results of a single process."""

import pytest
import torch

from mfac_compress.mfac.block_fisher import BlockFisher
from mfac_compress.mfac.fisher import invert
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.process_group import SINGLE, shard_columns
from mfac_compress.mfac.window import GradientWindow

COUNT = 3


def _duplicates(G):
    G[1::2] = G[::2]
    return G


def _cancelling(G):
    G[:, ::7] *= 1e4  # whose leverage comes near 1, in the columns of every rank
    return G


@pytest.mark.parametrize("form", [lambda G: G, _duplicates, _cancelling])
@pytest.mark.parametrize("damping", [1e-2, 1e-7])
def test_a_sharded_window_equals_the_whole(form, damping, on_all_ranks):
    m, d = 8, 40
    G = form(torch.randn(m, d, generator=torch.Generator().manual_seed(0)))
    partition = BlockPartition.contiguous(d, None)
    w = torch.randn(d, generator=torch.Generator().manual_seed(1))
    mask = w.abs() > 0.5

    def all_of(gradients, part, group, at):
        window = GradientWindow(m, part, group=group)
        window.add(gradients)
        F = invert(window, damping)
        return [
            F.diagonal(),
            F.ihvp(w[at]),
            F.joint_update(w[at], mask[at]),
            F.solve_kept(w[at], mask[at]),
        ]

    def work(group):
        shard = shard_columns(partition, COUNT, within_blocks=True)[group.rank]
        assert shard.coupled
        return all_of(G[:, shard.columns], shard.partition, group, shard.columns)

    whole = all_of(G, partition, SINGLE, slice(None))
    for expected, *parts in zip(whole, *on_all_ranks(work), strict=True):
        torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "partition",
    [
        BlockPartition.contiguous(70, 8),
        BlockPartition.of_tensors([(0, 20), (20, 25), (25, 70)], 8),
        BlockPartition.of_rows([(3, 10), (5, 8)], 4),
    ],
)
def test_sharded_blocks_equal_all_blocks(partition):
    G = torch.randn(12, 70, generator=torch.Generator().manual_seed(0))
    fisher = BlockFisher(partition)
    fisher.add(G)
    expected = invert(fisher, 1e-4).diagonal()

    shards = shard_columns(partition, COUNT)

    parts = []
    for shard in shards:
        own = BlockFisher(shard.partition)
        own.add(G[:, shard.columns])
        parts.append(invert(own, 1e-4).diagonal())
    assert torch.cat(parts).equal(expected)
    together = [end for s in shards for run in s.partition for _, end in run.bounds]
    assert len(together) == partition.count


def test_every_process_gets_a_fair_share_of_the_work():
    shards = shard_columns(BlockPartition.contiguous(12_800, 128), 8)
    assert {shard.partition.count for shard in shards} == {12, 13}
    assert (shards[0].columns.start, shards[-1].columns.stop) == (0, 12_800)


def test_fewer_blocks_than_processes_are_refused():
    with pytest.raises(ValueError, match="Got 2 blocks for 3 processes"):
        shard_columns(BlockPartition.contiguous(16, 8), COUNT)


def test_the_columns_of_one_block_are_divided_between_units():
    shards = shard_columns(BlockPartition.contiguous(20, None), 3, within_blocks=True, unit=4)
    assert [(s.columns.start, s.columns.stop) for s in shards] == [(0, 4), (4, 12), (12, 20)]
