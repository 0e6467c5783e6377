"""Re-estimated batch-norm statistics are those of the data."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac.batchnorm import (
    batchnorm_state,
    freeze_batchnorm,
    has_batchnorm,
    reestimate_batchnorm,
)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()


def test_statistics_become_those_of_the_batches():
    model, x = _model(), torch.randn(60, 3) * 2 + 1

    reestimate_batchnorm(model, x.split(20))

    hidden = model[0](x)
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    variances = torch.stack([part.var(0) for part in hidden.split(20)]).mean(0)
    torch.testing.assert_close(model[1].running_var, variances)


def test_modes_and_momentum_are_restored():
    model = _model()

    reestimate_batchnorm(model, [torch.randn(9, 3)])

    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_the_saved_state_restores_the_old_statistics():
    model, x = _model(), torch.randn(5, 3)
    before, saved = model(x), batchnorm_state(model)
    reestimate_batchnorm(model, [torch.randn(9, 3) + 5])
    assert not torch.allclose(model(x), before)

    model.load_state_dict(saved, strict=False)

    assert torch.equal(model(x), before)


def test_has_batchnorm_means_running_statistics():
    assert has_batchnorm(_model())
    assert not has_batchnorm(nn.Linear(2, 2))
    assert not has_batchnorm(nn.BatchNorm1d(2, track_running_stats=False))


def test_modes_and_momentum_are_restored_after_an_error_too():
    model = _model()

    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, [torch.randn(9, 3), torch.randn(9, 5)])

    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_a_frozen_batch_norm_keeps_its_statistics():
    model, x = _model(), torch.randn(9, 3) + 5
    before = batchnorm_state(model)
    model[1].requires_grad_(False)

    assert not has_batchnorm(model)
    reestimate_batchnorm(model, [x])
    freeze_batchnorm(model.train())
    model(x)

    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model[0].training


def test_only_frozen_batch_norms_are_put_into_evaluation_mode():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)).train()
    freeze_batchnorm(model)
    assert model[0].training
    assert model[1].training


def test_every_batch_norm_is_put_into_evaluation_mode_on_request():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.SyncBatchNorm(3)).train()
    freeze_batchnorm(model, every=True)
    assert not model[0].training
    assert model[1].training
    assert not model[2].training


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, scale):
        return self.norm(x * scale)


def test_batches_may_be_trees():
    model, x = Scaled(), torch.randn(9, 3)
    reestimate_batchnorm(model, [{"x": x, "scale": 2 * torch.ones(9, 1)}])
    torch.testing.assert_close(model.norm.running_mean, 2 * x.mean(0))
