"""Mixed samples are what the papers' formulas say, and both models are given the same."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import DistillSection, RecoverSection
from mfac_compress.pipeline.stages.distillation import Distillation
from mfac_compress.pipeline.stages.mixing import Mixing, _pasted
from mfac_compress.pipeline.stages.training import Training

N = 40


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _images(height=8, width=12):
    """Image i has the value i everywhere."""
    return torch.arange(N, dtype=torch.float64).view(N, 1, 1, 1).expand(N, 3, height, width)


def test_mixup_gives_each_sample_one_partner_and_the_batch_one_share():
    own = torch.eye(N, dtype=torch.float64)  # row i of the mixture says what is in it
    mixed, targets = Mixing(mixup=1.0)(Batch(own, torch.arange(N)), _generator())
    share = mixed.diagonal().median()
    assert 0 < share < 1
    rest = mixed - share * own
    assert torch.allclose(rest.sort(dim=1).values[:, -1], 1 - share, rtol=1e-12)
    assert rest.count_nonzero() == N
    assert torch.allclose(rest.sum(0), 1 - share, rtol=1e-12)  # each is a partner once
    assert targets == ()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_from_the_beta_distribution(alpha):
    generator, mix = _generator(), Mixing(mixup=alpha)
    own = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    shares = []
    while len(shares) < 2000:
        first, second = mix(Batch(own, ()), generator).inputs.flatten().tolist()
        if first != 0:  # its partner is the other one
            assert first + second == pytest.approx(1)
            shares.append(second)
    shares = torch.tensor(shares)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (8 * alpha + 4), rel=0.1)


def test_cutmix_pastes_one_box_of_each_partner():
    generator, images, areas = _generator(), _images(), []
    for _ in range(300):
        mixed, targets = Mixing(cutmix=1.0)(Batch(images, torch.arange(N)), generator)
        assert targets == ()
        pasted = (mixed != images).any(0)[0]
        rows, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, rows[:, None] & columns[None, :])
        assert rows.diff().count_nonzero() <= 2  # a box has no gaps
        assert columns.diff().count_nonzero() <= 2
        inside = mixed[:, :, pasted]
        assert bool((inside == inside[:, :1, :1]).all())  # one partner
        areas.append(pasted.double().mean().item())
    assert min(areas) < 0.05
    assert max(areas) > 0.7


def test_a_box_that_lies_within_the_image_has_the_area_of_the_share():
    middle = SimpleNamespace(integers=lambda size: size // 2)
    pasted = _pasted(_images(16, 32), torch.arange(N).roll(1), 0.75, middle)
    assert (pasted[1] == 0).double().mean().item() == pytest.approx(0.25)


def test_with_both_each_batch_is_mixed_by_one_of_them():
    generator, images = _generator(), _images()
    mix, cuts = Mixing(mixup=1.0, cutmix=1.0), 0
    for _ in range(200):
        mixed = mix(Batch(images, ()), generator).inputs
        cuts += bool((mixed == mixed.round()).all())
    assert 70 < cuts < 130


def test_the_same_generator_gives_the_same_mixtures_and_without_keys_nothing_is_drawn():
    batch, mix = Batch(_images(), torch.arange(N)), Mixing(mixup=0.4, cutmix=1.0)
    assert torch.equal(mix(batch, _generator(3)).inputs, mix(batch, _generator(3)).inputs)
    assert not torch.equal(mix(batch, _generator(3)).inputs, mix(batch, _generator(4)).inputs)
    generator = _generator()
    assert Mixing()(batch, generator) is batch
    assert torch.equal(generator.get_state(), _generator().get_state())


def test_inputs_that_cannot_be_mixed_are_refused():
    tokens = {"ids": torch.zeros(4, 5, dtype=torch.long)}
    with pytest.raises(InputError, match=r"recover\.mixup needs inputs of floats\. Got"):
        Mixing(mixup=1.0)(Batch(tokens, ()), _generator())
    with pytest.raises(InputError, match=r"recover\.cutmix needs batches of images"):
        Mixing(cutmix=1.0)(Batch(torch.ones(4, 5), ()), _generator())
    for seed in range(8):  # whichever of the two is drawn
        with pytest.raises(InputError, match=r"recover\.cutmix needs batches of images"):
            Mixing(1.0, 1.0)(Batch(torch.ones(4, 5), ()), _generator(seed))


class _Samples:
    def __len__(self):
        return N

    def shuffled(self, batch_size, generator):
        rows = torch.eye(N)[torch.randperm(N, generator=generator)]
        return (Batch(part, torch.arange(len(part))) for part in rows.split(batch_size))


def test_both_models_are_given_the_same_mixtures():
    seen = {"dense": [], "pruned": []}
    dense, pruned = nn.Linear(N, 3), nn.Linear(N, 3)
    for name, net in (("dense", dense), ("pruned", pruned)):
        net.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    section = RecoverSection(epochs=1, batch_size=10, mixup=1.0, distill=DistillSection())
    objective = Distillation.of(section.distill, dense, "cross_entropy", None)
    list(Training(pruned, {}, section, _Samples(), objective, 0).run(Ranks(), Progress()))
    assert len(seen["dense"]) == len(seen["pruned"]) == 4
    for ours, theirs in zip(seen["pruned"], seen["dense"], strict=True):
        assert torch.equal(ours, theirs)
        assert bool((ours.amax(1) < 1).any())


def test_a_run_trains_on_mixtures_the_same_each_time(project):
    states = []
    for number, keys in enumerate(({}, {"mixup": 0.5}, {"mixup": 0.5})):
        project.recipe["recover"] = {"epochs": 2, "keep": "last", "distill": {}} | keys
        project.output = project.folder / str(number)
        result = project.run("-q")
        assert result.exit_code == 0, result.output
        states.append((project.output / "model.safetensors").read_bytes())
    assert states[0] != states[1] == states[2]


def test_a_dry_run_says_what_is_mixed_and_in_what_precision(project):
    taught = {"epochs": 1, "distill": {}, "mixup": 0.5, "precision": "bfloat16"}
    project.recipe["recover"] = taught
    result = project.run("--dry-run")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "on mixed samples (mixup 0.5), in bfloat16" in text


def test_a_dry_run_refuses_inputs_that_cannot_be_mixed(project):
    project.recipe["recover"] = {"epochs": 1, "distill": {}, "cutmix": 1.0}
    result = project.run("--dry-run")
    assert result.exit_code == 2
    assert "recover.cutmix needs batches of images" in result.output
