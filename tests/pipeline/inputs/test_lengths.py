"""Batches of samples of similar length: all samples once, and little padding."""

import torch

from mfac_compress.pipeline.inputs.lengths import grouped_by_length


def _grouped(lengths, batch_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator)
    return grouped_by_length(order, lengths, batch_size, generator)


def test_each_sample_comes_once():
    lengths = torch.randint(1, 60, (1003,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(_grouped(lengths, 10).sort().values, torch.arange(1003))


def test_samples_of_a_batch_are_of_similar_length():
    lengths = torch.randint(1, 60, (1000,), generator=torch.Generator().manual_seed(1))
    batches = lengths[_grouped(lengths, 10)].split(10)
    padded = sum(int(batch.max()) * len(batch) for batch in batches)
    assert padded < 1.15 * lengths.sum()


def test_batches_are_not_in_order_of_length_and_differ_between_passes():
    lengths = torch.arange(200)
    first, second = _grouped(lengths, 10, seed=1), _grouped(lengths, 10, seed=2)
    longest = first.view(-1, 10).max(dim=1).values
    assert not torch.equal(longest, longest.sort().values)
    assert not torch.equal(first, second)


def test_only_the_last_batch_is_smaller():
    lengths = torch.arange(25)
    sizes = [len(part) for part in _grouped(lengths, 10).split(10)]
    assert sizes == [10, 10, 5]
    spread = [int(part.max() - part.min()) for part in lengths[_grouped(lengths, 10)].split(10)]
    assert max(spread[:2]) <= 14


def test_fewer_samples_than_a_batch_are_one_batch():
    assert sorted(_grouped(torch.tensor([3, 1, 2]), 10).tolist()) == [0, 1, 2]
