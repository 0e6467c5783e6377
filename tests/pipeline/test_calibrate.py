"""What goes between processes is counted in gradients."""

import torch

from mfac_compress.pipeline.stages.calibrate import _taken


def test_an_exchange_counts_rows_however_many_a_part_has():
    parts = iter([torch.zeros(32, 2)] * 5)
    assert sum(map(len, _taken(parts, 40))) == 64
    assert sum(map(len, _taken(parts, 1))) == 32
    assert sum(map(len, _taken(parts, 1000))) == 64
    assert not list(_taken(parts, 1000))
