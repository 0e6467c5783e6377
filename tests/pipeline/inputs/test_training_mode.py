"""Training without dropout: everything as when the model is used, but for running statistics."""

import torch
from torch import nn
from torch.nn import functional as F

from mfac_compress.pipeline.inputs.training_mode import train_mode


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(4).requires_grad_(False)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        x = F.dropout(self.drop(self.frozen(x)), 0.5, self.training)  # as attention does
        return self.norm(x)


def test_nothing_is_dropped_and_batch_norm_goes_on_learning():
    net, x = Net(), torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    train_mode(net, dropout=False)
    assert torch.equal(net(x), net(x))
    assert int(net.norm.num_batches_tracked) == 2
    assert net.rnn.training
    assert not net.frozen.training


def test_by_default_the_whole_model_trains():
    net, x = Net(), torch.ones(16, 4)
    train_mode(net)
    assert not torch.equal(net(x), net(x))
    assert net.drop.training
    assert not net.frozen.training
