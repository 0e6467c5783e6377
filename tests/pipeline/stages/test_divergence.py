"""The divergence from the dense model's outputs, by which stages choose: no labels."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.draw import Draws
from mfac_compress.pipeline.inputs.task import load_task
from mfac_compress.pipeline.recipe.schema import TaskSection
from mfac_compress.pipeline.stages import divergence as stage
from mfac_compress.pipeline.stages.divergence import Divergence


class _Split:
    """Samples by position, without usable labels."""

    def __init__(self, x, targets=None):
        self.x, self.targets = x, torch.full((len(x),), -1) if targets is None else targets

    def __len__(self):
        return len(self.x)

    def by_length(self, positions):
        return positions

    def batches(self, batch_size, *, indices):
        for part in torch.as_tensor(indices).split(batch_size):
            yield Batch(self.x[part], self.targets[part])


def _calibration(loss, x, targets=None):
    draws = Draws(len(x), 1, holdout_share=0.5, seed=0)
    task = load_task(TaskSection(loss=loss), folder=Path())
    return CalibrationData(_Split(x, targets), draws, task, True, torch.device("cpu"))


@pytest.fixture
def x():
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def _linear(seed, outputs=3):
    torch.manual_seed(seed)
    return nn.Linear(4, outputs).eval()


@pytest.mark.parametrize(("batch", "temperature"), [(3, 1.0), (256, 4.0)])
def test_classes_are_compared_by_kullback_leibler(x, monkeypatch, batch, temperature):
    monkeypatch.setattr(stage, "_BATCH", batch)
    dense, other, calibration = _linear(0), _linear(1), _calibration("cross_entropy", x)
    held = x[calibration.draws.holdout]
    logits = (net(held).detach().double() / temperature for net in (dense, other))
    p, q = (each.softmax(dim=1) for each in logits)
    expected = float((p * (p / q).log()).sum(dim=1).mean())

    divergence = Divergence(dense, calibration, temperature=temperature)

    assert divergence.of(other) == pytest.approx(expected)
    assert divergence.of(dense) == pytest.approx(0, abs=1e-12)


def test_other_outputs_are_compared_in_units_of_the_dense_outputs_variance(x):
    dense, other, calibration = _linear(0), _linear(1), _calibration("mse", x)
    held = x[calibration.draws.holdout]
    y, wanted = (net(held).detach().double() for net in (other, dense))
    expected = float((y - wanted).square().mean() / wanted.var(correction=0))
    assert Divergence(dense, calibration).of(other) == pytest.approx(expected)


class _Scaled(nn.Module):
    def __init__(self, net, by):
        super().__init__()
        self.net, self.by = net, by

    def forward(self, x):
        y = self.net(x)
        return {"large": y * self.by, "small": y, "which": y.argmax(1)}


def test_outputs_of_all_scales_count_alike_and_whole_numbers_do_not(x):
    calibration = _calibration("mse", x)
    one, hundred = (
        Divergence(_Scaled(_linear(0), by), calibration).of(_Scaled(_linear(1), by))
        for by in (1, 100)
    )
    assert one == pytest.approx(hundred)


def test_a_shift_of_all_logits_is_no_difference_and_impossible_classes_none(x):
    class Shifted(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.net, self.by = _linear(0), by

        def forward(self, x):
            y = self.net(x) + self.by
            return torch.cat([y, torch.full_like(y[:, :1], -torch.inf)], dim=1)

    calibration = _calibration("cross_entropy", x)
    assert Divergence(Shifted(0), calibration).of(Shifted(7)) == pytest.approx(0, abs=1e-6)


def test_padding_takes_no_part(x):
    class Tokens(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.net, self.last = _linear(0, outputs=6), last

        def forward(self, x):
            y = self.net(x).view(len(x), 3, 2).clone()
            y[:, 0, 1] += self.last
            return y

    targets = torch.zeros(len(x), 2, dtype=torch.long)
    targets[:, 1] = -100
    padded, all_of_it = (_calibration("cross_entropy", x, t) for t in (targets, None))
    assert Divergence(Tokens(0), padded).of(Tokens(5)) == 0
    assert Divergence(Tokens(0), all_of_it).of(Tokens(5)) > 0.1


def test_the_dense_model_runs_once_as_far_as_its_outputs_are_kept(x, monkeypatch):
    monkeypatch.setattr(stage, "_BATCH", 4)  # 3 batches of the 10 held-out samples
    calls = []
    dense, other = _linear(0), _linear(1)
    dense.register_forward_hook(lambda *_: calls.append(1))
    calibration = _calibration("cross_entropy", x)
    for room, expected in [(1 << 20, 3), (4 * 3, 5)]:
        monkeypatch.setattr(stage, "_MOST_KEPT", room)
        calls.clear()
        divergence = Divergence(dense, calibration)
        divergence._room = room
        assert divergence.of(other) == divergence.of(other)
        assert len(calls) == expected


def test_outputs_that_are_not_finite_are_never_nearer(x):
    broken = _linear(1)
    broken.weight.data[0] = torch.nan
    for loss in ("cross_entropy", "mse"):
        found = Divergence(_linear(0), _calibration(loss, x)).of(broken)
        assert not found < 1e9
