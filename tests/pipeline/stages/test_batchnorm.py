"""Batch-norm statistics are taken of samples changed as in training, and kept where that helps."""

import pytest
import torch
from torch import nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.recipe.schema import Augment
from mfac_compress.pipeline.stages.batchnorm import Batchnorm, recalibrate_batchnorm


class _Calibration:
    """Samples that the augmentation doubles, and no labels."""

    class draws:
        pool = torch.arange(64)

        @staticmethod
        def generator_for(purpose):
            return torch.Generator().manual_seed(len(purpose))

    def augmented(self, augment, batch_size, positions, generator):
        x = torch.randn(len(positions), 5, generator=generator)
        for part in x.split(batch_size):
            yield Batch(part * (2 if augment.section.flip else 1), None)


class _Divergence:
    """Of the running variance from a wanted one."""

    calibration = _Calibration()

    def __init__(self, wanted):
        self.wanted = wanted

    def of(self, module):
        return float((module.running_var.mean() - self.wanted).abs())


@pytest.mark.parametrize(("wanted", "taken"), [(4.0, True), (1.0, False)])
def test_batchnorm_is_reestimated_on_augmented_samples_where_that_brings_outputs_nearer(
    wanted, taken
):
    norm = nn.BatchNorm1d(5)
    found = recalibrate_batchnorm(
        norm, _Divergence(wanted), "auto", ImageChanges(Augment(flip=True))
    )

    before, after = found.divergence
    assert found.reestimated == taken == (after < before)
    assert float(norm.running_var.mean()) == pytest.approx(4.0 if taken else 1.0, rel=0.3)


def test_batchnorm_is_reestimated_alike_each_time():
    norms = [nn.BatchNorm1d(5) for _ in range(2)]
    for norm in norms:
        assert recalibrate_batchnorm(
            norm, _Divergence(0), "always", ImageChanges(Augment(flip=True))
        ) == Batchnorm(reestimated=True)
    assert torch.equal(norms[0].running_var, norms[1].running_var)
