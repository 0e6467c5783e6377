"""A training that is killed goes on from its last epoch, to the bytes of an undisturbed one."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.fake_quantisation import FakeQuantisedLayer
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.checkpoint import Checkpoints
from mfac_compress.pipeline.stages.distillation import Distillation
from mfac_compress.pipeline.stages.objective import Accelerated, Supervised
from mfac_compress.pipeline.stages.quantization_aware import QuantizationAware, Rounding
from mfac_compress.pipeline.stages.training import Training

EPOCHS = 4


class _Samples:
    """Samples in random order, changed by the generators that a user's data set may draw from."""

    def __len__(self):
        return 24

    def shuffled(self, batch_size, generator):
        x = torch.linspace(-1, 1, 24 * 5).view(24, 5).sin()
        order = torch.randperm(24, generator=generator)
        for rows in order.split(batch_size):
            noise = random.random() + np.random.rand() + torch.rand(1, generator=generator)
            yield Batch(x[rows] + noise, rows % 3)


def _net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.2), nn.Linear(7, 3))
    net.register_buffer("seen", torch.zeros(()), persistent=False)
    net.register_forward_pre_hook(_count)
    return net


def _count(module, _):
    module.seen += module.training


MASKS = {"0.weight": torch.arange(35).view(7, 5) % 3 > 0}


def _rounding(module):
    """Scales that depend on the weights, as those that are measured do."""
    torch.rand(1)  # a user's data set may draw
    scale = module[0].weight.detach().abs().max().item() / 20
    layers = tuple(FakeQuantisedLayer(f"{n}.weight", scale * (n + 1), 99 + n) for n in (0, 3))
    return Rounding({"x": torch.tensor([0.0, scale])}, layers, 64), scale


def _training(optimizer="sgd", divergences=(), aware=0, **changes):
    """A training whose epochs have the given divergences, the first of them before it."""
    given = {"optimizer": optimizer, "window": {"num_gradients": 5, "damping": 0.1}}
    section = RecoverSection(epochs=EPOCHS, batch_size=8, lr=0.05, **given | changes)
    net, objective = _net(), Supervised(nn.functional.cross_entropy)
    if section.distill:
        dense = _net().eval().requires_grad_(False)
        taught = Distillation.of(section.distill, dense, "cross_entropy", None)
        objective = Accelerated(taught, bfloat16=section.precision == "bfloat16")
    start, *later = divergences or [math.nan]
    later = iter(later)

    def divergence_of(module):
        torch.rand(1)  # a user's data set may draw
        return next(later)

    judge = divergence_of if divergences else None
    rounds = QuantizationAware(aware, _rounding) if aware else None
    return net, Training(net, MASKS, section, _Samples(), objective, 3, judge, start, rounds)


def _run(training, folder=None):
    if folder is None:
        return training.run(Ranks(), Progress())
    checkpoints = Checkpoints(folder)
    return training.run(Ranks(), Progress(), checkpoints.save, checkpoints.load())


def _bytes(net):
    return {name: t.clone() for name, t in (*net.state_dict().items(), ("seen", net.seen))}


def _same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adamw"},
        {"optimizer": "mfac"},
        {"ema": 0.9},
        {"distill": {}, "mixup": 0.5, "precision": "bfloat16"},
        {"aware": 2},
        {"aware": EPOCHS, "ema": 0.9, "distill": {}},
    ],
    ids=["sgd", "adamw", "mfac", "average", "mixed", "rounded", "all-rounded"],
)
@pytest.mark.parametrize("divergences", [(), (5, 3, 1, 2, 4)], ids=["last", "best"])
def test_killed_after_each_epoch_it_ends_in_the_bytes_of_an_undisturbed_one(
    tmp_path, changes, divergences
):
    expected, training = _training(**changes, divergences=divergences)
    losses = list(_run(training))

    done = []
    for epoch in range(EPOCHS):
        rest = divergences[:1] + divergences[1 + epoch :]
        net, training = _training(**changes, divergences=rest)
        random.seed(epoch), np.random.seed(epoch), torch.manual_seed(epoch)
        epochs = _run(training, tmp_path)
        done = [next(epochs) for _ in range(epoch + 1)]
    assert list(epochs) == []

    assert done == losses
    assert _same(_bytes(net), _bytes(expected))
    assert not net.get_parameter("0.weight")[~MASKS["0.weight"]].any()
    if divergences and not changes.get("aware"):
        assert (training.best.epoch, training.best.divergences) == (2, [5, 3, 1, 2, 4])


def test_each_epoch_is_trained_once(tmp_path, monkeypatch):
    trained, epoch_of = [], Training._epoch

    def note(self, epoch, *arguments):
        trained.append(epoch)
        return epoch_of(self, epoch, *arguments)

    monkeypatch.setattr(Training, "_epoch", note)
    for count in (1, 3, EPOCHS):
        epochs = _run(_training("sgd")[1], tmp_path)
        for _ in range(count):
            next(epochs)
    assert trained == list(range(EPOCHS))


def test_random_numbers_do_not_depend_on_what_ran_before():
    nets = []
    for seed in (1, 2):
        net, training = _training("sgd")
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        list(_run(training))
        nets.append(net)
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale():
    net, training = _training(freeze_batchnorm=True)
    before = _bytes(net)
    list(_run(training))
    after = _bytes(net)
    assert _same(after, {name: before[name] for name in ("1.running_mean", "1.running_var")})
    assert not torch.equal(after["1.weight"], before["1.weight"])
    assert after["seen"] == EPOCHS * 3  # all else was in training mode


def _after(epochs, **changes):
    """The tensors after some epochs of a training of which the last is kept."""
    net, training = _training(**changes)
    states = [_bytes(net)]
    states += [_bytes(net) for _ in _run(training)]
    return states[epochs]


@pytest.mark.parametrize(
    ("divergences", "kept"),
    [
        ((5, 3, 1, 2, 4), 2),
        ((1, 1, 1, 1, 1), 0),
        ((1, 2, 3, 4, 5), 0),
        ((math.nan, math.nan, 3, math.nan, 2), 4),
    ],
)
def test_the_best_epoch_is_kept_also_none_and_judging_changes_no_other(divergences, kept):
    net, training = _training(divergences=divergences)
    list(_run(training))
    assert training.best.epoch == kept
    expected = _after(kept)
    expected.pop("seen")
    assert _same(net.state_dict(), expected)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (2, 4), (None, 4)])
def test_it_ends_where_no_epoch_has_been_better_for_long(tmp_path, patience, epochs):
    divergences = (5, 3, 4, 2, 4)
    _, training = _training(divergences=divergences, patience=patience, keep="best")
    losses = list(_run(training, tmp_path))
    assert len(losses) == epochs
    _, again = _training(divergences=divergences[:1], patience=patience, keep="best")
    if epochs < EPOCHS:  # killed before the stage was finished
        assert list(_run(again, tmp_path)) == losses


def test_the_average_is_that_of_the_formula():
    decay, net = 0.9, _net()
    _, training = _training(ema=decay)
    steps = []
    update = training._average.update

    def note(tensors):
        steps.append({name: t.detach().clone() for name, t in tensors.items()})
        update(tensors)

    training._average.update = note
    list(_run(training))
    assert len(steps) == EPOCHS * 3
    for name, start in (("3.weight", net[3].weight), ("1.running_mean", net[1].running_mean)):
        expected = decay ** len(steps) * start.detach().double()
        for number, step in enumerate(reversed(steps)):
            expected += (1 - decay) * decay**number * step[name].double()
        found = training._tensors()[name]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert training._tensors()["1.num_batches_tracked"] == len(steps)


def test_what_is_judged_is_what_is_kept():
    """With an average, that is the average."""
    judged, (net, training) = [], _training(ema=0.9, divergences=(5, 4, 3, 2, 1))
    training._divergence_of = lambda module: judged.append(_bytes(module)) or 5 - len(judged)
    list(_run(training))
    assert len(judged) == EPOCHS
    judged[-1].pop("seen")
    assert _same(net.state_dict(), judged[-1])
    assert not torch.equal(net[3].weight, _after(EPOCHS)["3.weight"])


def test_dropout_may_be_left_out():
    """Another course than with it, and none of the random numbers that it draws."""
    with_it, without = _after(EPOCHS), _after(EPOCHS, dropout=False)
    assert not torch.equal(with_it["3.weight"], without["3.weight"])
    net, training = _training(dropout=False)
    net[2].p = 0.9
    list(_run(training))
    assert torch.equal(net[3].weight, without["3.weight"])


def test_dropout_is_left_out_by_default_where_only_the_dense_model_teaches():
    assert RecoverSection().uses_dropout
    assert RecoverSection(distill={"weight": 0.5}).uses_dropout
    assert not RecoverSection(distill={}).uses_dropout
    assert RecoverSection(distill={}, dropout=True).uses_dropout


@pytest.mark.parametrize("ema", [None, 0.9])
def test_epochs_before_those_that_round_do_not_compete_with_them(ema):
    """Though in float they are nearer; the state in which rounding begins does compete."""
    for later, kept in (((6, 7), 2), ((6, 0.001), 4), ((0.0, 0.0), 3)):
        given = (9, 1e-9, 1, *later)
        net, training = _training(divergences=given, aware=2, ema=ema)
        list(_run(training))
        before, first, at_start, *others = training.best.divergences
        assert [before, first, *others] == [9, 1e-9, *later]
        assert 0.001 < at_start < 1, "judged anew, with rounding"
        assert training.best.epoch == kept
        assert ema or kept != 2 or _same(net.state_dict(), _without(_after(2), "seen"))


def _without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


def test_the_last_epochs_are_trained_and_judged_with_rounding():
    seen, (_, training) = [], _training(divergences=(5, 4, 3, 2, 1), aware=2)
    x = torch.linspace(-1, 1, 10).view(2, 5).sin()

    def judge(module):
        module.eval()
        out = module(x)
        inside = torch.equal(out, plain(module))
        seen.append(inside)
        return 1.0

    def plain(module):
        h = nn.functional.linear(x, module[0].weight.clone(), module[0].bias)
        return nn.functional.linear(module[1](h), module[3].weight.clone(), module[3].bias)

    training._divergence_of = judge
    list(_run(training))
    assert seen == [True, True, False, False]
    for epochs, same in ((2, True), (3, False)):
        one, other = _after(epochs), _after(epochs, aware=2)
        assert torch.equal(one["3.weight"], other["3.weight"]) == same
