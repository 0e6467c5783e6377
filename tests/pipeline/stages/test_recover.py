"""A training that is killed goes on from its last epoch, to the bytes of an undisturbed one."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.checkpoint import Checkpoints
from mfac_compress.pipeline.stages import recover
from mfac_compress.pipeline.stages.recover import Training

EPOCHS = 4


class _Split:
    """Samples in random order, changed by the generators that a user's data set may draw from."""

    def __len__(self):
        return 24

    def batches(self, batch_size, *, shuffle, generator, augment):
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


def _training(optimizer):
    window = {"num_gradients": 5, "damping": 0.1}
    section = RecoverSection(
        epochs=EPOCHS, optimizer=optimizer, batch_size=8, lr=0.05, window=window
    )
    net = _net()
    return net, Training(net, MASKS, section, _Split(), nn.functional.cross_entropy, seed=3)


def _bytes(net):
    return {name: t.clone() for name, t in (*net.state_dict().items(), ("seen", net.seen))}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "mfac"])
def test_killed_after_each_epoch_it_ends_in_the_bytes_of_an_undisturbed_one(tmp_path, optimizer):
    expected, training = _training(optimizer)
    losses = list(training.run(Ranks(), Progress()))

    checkpoints, done = Checkpoints(tmp_path), []
    for epoch in range(EPOCHS):
        net, training = _training(optimizer)
        random.seed(epoch), np.random.seed(epoch), torch.manual_seed(epoch)
        epochs = training.run(Ranks(), Progress(), checkpoints)
        done = [next(epochs) for _ in range(epoch + 1)]
    assert list(epochs) == []

    assert done == losses
    one, other = _bytes(net), _bytes(expected)
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert not net.get_parameter("0.weight")[~MASKS["0.weight"]].any()


def test_each_epoch_is_trained_once(tmp_path, monkeypatch):
    trained, epoch_of = [], Training._epoch

    def note(self, epoch, *arguments):
        trained.append(epoch)
        return epoch_of(self, epoch, *arguments)

    monkeypatch.setattr(Training, "_epoch", note)
    for count in (1, 3, EPOCHS):
        epochs = _training("sgd")[1].run(Ranks(), Progress(), Checkpoints(tmp_path))
        for _ in range(count):
            next(epochs)
    assert trained == list(range(EPOCHS))


def test_random_numbers_do_not_depend_on_what_ran_before():
    nets = []
    for seed in (1, 2):
        net, training = _training("sgd")
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        list(training.run(Ranks(), Progress()))
        nets.append(net)
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)


def test_a_run_that_ends_in_an_epoch_goes_on_from_the_one_before(project, monkeypatch):
    project.recipe["prune"] |= {"steps": 2, "epochs_between": 2}
    project.recipe["recover"] = {"epochs": 3}
    undisturbed, project.output = project.output, project.folder / "killed"
    assert project.run("-q").exit_code == 0
    whole, project.output = project.output, undisturbed
    trained, epoch_of = [], Training._epoch

    def dies(self, epoch, *arguments):
        if len(trained) in (1, 4):
            trained.append("killed")
            raise OSError("killed")
        trained.append(epoch)
        return epoch_of(self, epoch, *arguments)

    monkeypatch.setattr(Training, "_epoch", dies)
    for stage in ("recover-00", "recover"):
        assert f"stage {stage}: OSError: killed" in project.run("-q").output
    result = project.run("-v")

    assert result.exit_code == 0, result.output
    assert trained == [0, "killed", 1, 0, "killed", 1, 2]
    for name in ("model.safetensors", "masks.safetensors"):
        one, other = (load_file(folder / name) for folder in (whole, project.output))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "model.onnx").read_bytes() == (project.output / "model.onnx").read_bytes()
    assert not list((project.output / ".cache").glob("*/.unfinished*"))


def test_without_epochs_there_is_no_checkpoint(project, monkeypatch):
    monkeypatch.setattr(recover.Checkpoints, "save", None)
    assert project.run("-q", "--set", "recover.epochs=1").exit_code == 0
