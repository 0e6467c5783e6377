"""Batches of samples of similar length: a short text beside a long one is mostly padding."""

import torch
from torch import Tensor

# Batches that are sorted together. Of a few, none is short; of all, each pass would have the same.
_SORTED_AT_ONCE = 50


def grouped_by_length(
    order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Put samples of similar length side by side, batch by batch.

    Args:
        order: Positions in random order. Shape ``[n]``.
        lengths: Of all samples, by position.
        batch_size: Samples in a batch; what is left over of them comes last.
        generator: On the CPU. Draws the order of the batches.

    Returns:
        The same positions. Shape ``[n]``.
    """
    whole = len(order) // batch_size * batch_size
    batches = [
        part[lengths[part].argsort(stable=True)].view(-1, batch_size)
        for part in order[:whole].split(_SORTED_AT_ONCE * batch_size)
    ]
    if not batches or not whole:
        return order
    sorted_ = torch.cat(batches)
    shuffled = sorted_[torch.randperm(len(sorted_), generator=generator)]
    return torch.cat([shuffled.flatten(), order[whole:]])
