"""Blocks cover each column once, and follow tensors or rows."""

import pytest
import torch

from mfac_compress.mfac.partition import BlockPartition, UniformBlocks

PARTITIONS = [
    BlockPartition.contiguous(31, 7),
    BlockPartition.of_tensors([(0, 5), (5, 31)], 4),
    BlockPartition.of_rows([(4, 3, 3, 3), (16, 2), (9,), (2, 50)], 12),
    BlockPartition([UniformBlocks(0, 30, 4, 10), UniformBlocks(30, 33, 2)]),
]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_to_blocks_and_from_blocks_are_inverses(partition):
    x = torch.arange(1.0, partition.size + 1)
    assert torch.equal(partition.from_blocks(partition.to_blocks(x)), x)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_locate_returns_where_to_blocks_puts_a_column(partition):
    blocks = partition.to_blocks(torch.arange(partition.size))
    for column in range(partition.size):
        run, block, place = partition.locate(column)
        assert blocks[run][block, place] == column


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_split_runs_have_the_same_blocks(partition, count):
    x = torch.arange(1.0, partition.size + 1)
    for run in partition:
        parts = list(run.split(count))
        assert torch.equal(torch.cat([part.to_blocks(x) for part in parts]), run.to_blocks(x))
        assert [bound for part in parts for bound in part.bounds] == run.bounds


def test_long_rows_are_split_evenly_and_no_block_straddles_two():
    (run,) = BlockPartition.of_rows([(8, 64, 3, 3)], block_size=128)
    assert {stop - start for start, stop in run.bounds} == {116, 112}
    assert all(start // 576 == (stop - 1) // 576 for start, stop in run.bounds)


def test_short_rows_share_a_block_undivided():
    (run,) = BlockPartition.of_rows([(16, 3, 3, 3)], block_size=128)
    assert {stop - start for start, stop in run.bounds} == {108}


def test_blocks_that_follow_rows_hold_whole_units():
    (run,) = BlockPartition.of_rows([(3, 20)], block_size=16, unit=4)
    assert run.bounds[:2] == [(0, 12), (12, 20)]
    assert all(edge % 4 == 0 for bound in run.bounds for edge in bound)
