"""The marginalization model: an exact one has no loss, and metrics see what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.inputs.task import load_task
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.stages.metric import compare_metrics
from mfac_compress.recipes.models import mam_ising, train_mam_ising
from mfac_compress.recipes.models.ising import Ising
from mfac_compress.recipes.models.mam import growing_sets, residuals

RECIPES = Path(__file__).parents[2] / "recipes"


class Exact(nn.Module):
    """Answers questions about an Ising model as a perfect network would."""

    def __init__(self, ising):
        super().__init__()
        self.ising = ising

    def forward(self, x):
        asked = x.reshape(-1, x.shape[-1]).numpy()
        columns = [self.ising.log_marginals(asked)]
        for site in range(asked.shape[1]):
            up, down = asked.copy(), asked.copy()
            up[:, site], down[:, site] = 1, -1
            columns.append(self.ising.log_sums(up) - self.ising.log_sums(down))
        return torch.from_numpy(np.stack(columns, 1)).reshape(*x.shape[:-1], -1)


@pytest.fixture(scope="module")
def asked():
    """Exact outputs for some questions, and the targets."""
    arrays = mam_ising.questions(200, judged=200)
    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    outputs = Exact(mam_ising.ising())(arrays.pop("spins").float())
    return outputs, arrays


def test_an_exact_model_has_neither_divergence_nor_residual():
    ising = Ising.random(3, 3)
    x = torch.from_numpy(ising.sample(64, np.random.default_rng(0))).float()
    log_weights = torch.from_numpy(ising.log_weights(x.numpy()))

    assert train_mam_ising.energy_loss(Exact(ising), x, log_weights) < 1e-12
    # A model of other fields is consistent, but diverges.
    other = Exact(Ising.random(3, 3, seed=5))
    assert train_mam_ising.energy_loss(other, x, log_weights) > 0.01


def test_a_residual_is_what_the_chain_rule_misses():
    before = torch.tensor([[-1.0, 0.3, 0.7]])
    after = torch.tensor([[-2.0, 0.0, 0.0]])
    missed = residuals(before, after, torch.tensor([1]), torch.tensor([-1.0]))
    assert missed.item() == pytest.approx(-1 - np.log(1 + np.exp(0.7)) + 2)


def test_sets_grow_by_the_site_that_is_named():
    x = 1 - 2 * torch.randint(2, (50, 9)).float()
    sets, site = growing_sets(x, 4)
    before, after = sets[:, :-1], sets[:, 1:]
    changed = before != after
    assert changed.sum(2).eq(1).all()
    assert changed.int().argmax(2).equal(site)
    assert after.gather(2, site[..., None])[..., 0].equal(x.gather(1, site))
    assert ((sets == 0) | (sets == x[:, None])).all()
    assert set(sets.ne(0).sum(2).unique().tolist()) == set(range(10))


def test_metrics_of_an_exact_model_are_perfect(asked):
    outputs, targets = asked
    entropy = -targets["log_p"][:, 0] / (25 * np.log(2))
    torch.testing.assert_close(mam_ising.bits_per_dimension(outputs, targets), entropy)
    assert mam_ising.inconsistency(outputs, targets).max() < 1e-6
    assert mam_ising.log_partition_error(outputs, targets) < 1e-12
    assert mam_ising.rank_correlation(outputs, targets) == pytest.approx(1)
    assert mam_ising.rank_correlation_same_size(outputs, targets) == pytest.approx(1)
    assert mam_ising.loss(outputs, targets) == pytest.approx(-targets["log_p"][:, 0].mean())


def test_more_probability_than_there_is_does_not_go_unseen(asked):
    outputs, targets = asked
    larger = outputs.clone()
    larger[..., 0] += 0.5
    bits = mam_ising.bits_per_dimension
    assert bits(larger, targets).mean() < bits(outputs, targets).mean()
    assert mam_ising.log_partition_error(larger, targets) == pytest.approx(0.5)


def test_more_probability_than_there_is_shows_in_log_z_only(asked, monkeypatch):
    """Its bits are better, and all else is as it was."""
    monkeypatch.setattr("mfac_compress.pipeline.statistics.resampling.RESAMPLES", 100)
    recipe = load_recipe(RECIPES / "mam-ising.yaml")
    gates, task = recipe.validate_.gates, load_task(recipe.task, folder=RECIPES)
    outputs, targets = asked
    larger = outputs.clone()
    larger[..., 0] += 0.1

    files = {"dense": outputs, "sparse": larger}
    files, targets = ({k: v.numpy() for k, v in each.items()} for each in (files, targets))
    (_, bits), *others = compare_metrics(task.metrics, 0.95, files, targets)

    assert bits["sparse"].drop < 0
    allowed = [gates.further_metrics[name].max_metric_drop for name in task.further_metrics]
    exceeds = [
        drops["sparse"].drop > most for (_, drops), most in zip(others, allowed, strict=True)
    ]
    assert dict(zip(task.further_metrics, exceeds, strict=True)) == {
        "inconsistency": False,
        "log_partition_error": True,
        "rank_correlation": False,
        "rank_correlation_same_size": False,
    }


def test_a_rank_correlation_can_leave_out_what_the_number_of_spins_says(asked):
    outputs, targets = asked
    by_size = outputs.clone()
    noise = 1e-3 * torch.randn(len(outputs), generator=torch.Generator().manual_seed(0))
    by_size[:, 1, 0] = -0.7 * targets["known"] + noise
    assert mam_ising.rank_correlation(by_size, targets) > 0.9
    assert abs(mam_ising.rank_correlation_same_size(by_size, targets)) < 0.25


def test_samples_that_are_trained_on_have_no_exact_answers():
    arrays = mam_ising.questions(500, judged=100)
    assert (arrays["log_p"][:100, 0] < 0).all()
    assert not arrays["log_p"][100:].any()
    assert len(np.unique(arrays["spins"], axis=0)) == 500


def test_weights_are_current_until_what_trained_them_changes(tmp_path, monkeypatch):
    weights = tmp_path / "dense.safetensors"
    assert not train_mam_ising.is_current(weights)
    save_file({"weight": torch.zeros(1)}, weights)
    assert not train_mam_ising.is_current(weights)
    save_file({"weight": torch.zeros(1)}, weights, metadata={"sources": train_mam_ising.sources()})
    assert train_mam_ising.is_current(weights)

    folder = Path(train_mam_ising.__file__).parent
    for source in folder.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(train_mam_ising, "__file__", str(tmp_path / "train_mam_ising.py"))
    assert train_mam_ising.is_current(weights)
    with (tmp_path / "train_mam_ising.py").open("a") as script:
        script.write("STEPS_PER_SITE = 200\n")
    assert not train_mam_ising.is_current(weights)


def test_training_writes_what_it_was_trained_by(tmp_path, monkeypatch):
    weights = tmp_path / "dense.safetensors"
    monkeypatch.setattr(train_mam_ising, "mam", lambda side: mam_ising.mam(hidden=8, side=side))
    monkeypatch.setattr(train_mam_ising, "STEPS_PER_SITE", 1)
    monkeypatch.setattr("sys.argv", ["train_mam_ising.py", str(weights), "--side", "3"])
    try:
        train_mam_ising.main()
    finally:
        torch.use_deterministic_algorithms(False)
    assert train_mam_ising.is_current(weights, side=3)
    assert not train_mam_ising.is_current(weights)
    with safe_open(weights, framework="pt") as file:
        assert file.get_slice("heads.weight").get_shape() == [10, 8]


@pytest.mark.parametrize("side", [5, 6])
def test_the_recipe_fits_the_model_and_its_questions(tmp_path, side):
    np.savez(tmp_path / "questions.npz", **mam_ising.questions(400, judged=100, side=side))
    model = mam_ising.mam(hidden=32, side=side)
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    rows = {"validation": "[0, 100]", "calibration": "[100, 300]", "recovery": "[300, 400]"}
    changes = [
        f"data.folder={tmp_path}",
        f"model.kwargs={{hidden: 32, side: {side}}}",
        "calibrate.num_gradients=8",
    ]
    changes += ["reconstruct.samples=100", "quantize={mode: static, samples: 100}"]
    changes += [f"data.splits.{name}.rows={span}" for name, span in rows.items()]
    settings = [part for change in changes for part in ("--set", change)]
    arguments = [str(RECIPES / "mam-ising.yaml"), str(tmp_path / "dense.safetensors")]

    result = CliRunner().invoke(main, [*arguments, *settings, "--dry-run"])

    assert result.exit_code == 0, result.output
    assert "pattern: blocks of 4 outputs" in result.output
    assert "taught by the dense model (mse, weight 1)" in result.output
