"""Repairs come nearer to the dense model, keep the zeros, need no labels, or are not kept."""

import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from mfac_compress.mfac.layerwise import LayerGraph
from mfac_compress.mfac.numerics import PrecisionError
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.inputs.memory import MemoryBudget
from mfac_compress.pipeline.inputs.model_layers import ModelLayers
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import BlocksSection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages import reconstruct as stage
from mfac_compress.pipeline.stages.divergence import Divergence

SOLVE = stage.LeastSquares(samples=100, positions=None, ridge=0.01)


@pytest.fixture(scope="module")
def inputs(module_project):
    return load_inputs(load_recipe(module_project.write_recipe()), module_project.model)


@pytest.fixture
def repair(inputs, tmp_path):
    """Repair the model without the smaller half of its weights; gives facts and both states."""
    module, masks = inputs.model.copy(), {}
    for name in inputs.targets.shapes:
        weight = module.get_parameter(name)
        masks[name] = weight.abs() > weight.abs().median()
        weight.data.masked_fill_(~masks[name], 0)
    pruned = State.of(module, masks)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    pruned.save(tmp_path / "before")

    def run(solve=SOLVE, blocks=None, is_last=True, draw="reconstruct"):
        before = {"state": SimpleNamespace(folder=tmp_path / "before")}
        facts = stage.reconstruct(
            Job(tmp_path / "after", before, Ranks(), Progress(), None),
            model=inputs.model,
            layers=_layers(inputs),
            calibration=inputs.calibration,
            solve=solve,
            blocks=blocks,
            is_last=is_last,
            draw=draw,
        )
        return facts, pruned, State.load(tmp_path / "after")

    return run


def _layers(inputs):
    return ModelLayers(inputs.model, inputs.calibration, inputs.form.section)


def _check(inputs, **changes):
    given = {
        "layers": _layers(inputs),
        "calibration": inputs.calibration,
        "solve": SOLVE,
        "blocks": None,
        "pruned": list(inputs.targets.shapes),
        "samples_key": "samples",
        "budget": MemoryBudget(10**9, "run.memory_budget"),
        "where": lambda key: key,
    }
    stage.check(Ranks(), **given | changes)


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_repaired_model_is_nearer_to_the_dense_one_and_has_its_zeros(inputs, repair):
    facts, pruned, repaired = repair()

    (least_squares,) = facts.repairs
    before, after = (
        Divergence(inputs.model.module, inputs.calibration).of(state.into(inputs.model.copy()))
        for state in (pruned, repaired)
    )
    assert least_squares.divergence == (pytest.approx(before), pytest.approx(after))
    assert least_squares.kept
    assert after < 0.8 * before
    assert _same(repaired.masks, pruned.masks)
    for name, mask in repaired.masks.items():
        assert not repaired.tensors[name][~mask].any()
        assert not torch.equal(repaired.tensors[name], pruned.tensors[name])
    assert facts.left_out == {}


def test_the_same_draw_gives_the_same_bytes_and_another_one_others(repair):
    few = stage.LeastSquares(samples=40, positions=1, ridge=0.1)
    first, again, other = (repair(few, draw=draw)[2].tensors for draw in ("a", "a", "b"))
    assert _same(first, again)
    assert not _same(first, other)


def test_a_repair_that_brings_it_no_nearer_is_not_kept(repair, monkeypatch):
    def harm(module, *_, **__):
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.mul_(3)

    monkeypatch.setattr(stage, "least_squares", harm)
    facts, pruned, state = repair()

    (harmful,) = facts.repairs
    assert not harmful.kept
    assert harmful.divergence[1] > harmful.divergence[0]
    assert _same(state.tensors, pruned.tensors)


@pytest.mark.parametrize(("after", "kept"), [(0.5, True), (float("nan"), False)])
def test_a_repair_that_makes_outputs_finite_again_is_kept(repair, monkeypatch, after, kept):
    found = iter([float("nan"), after])
    monkeypatch.setattr(stage, "least_squares", lambda *_, **__: None)
    monkeypatch.setattr(stage.Divergence, "of", lambda *_: next(found))
    assert repair()[0].repairs[0].kept is kept


def test_a_repair_that_ends_in_nan_is_undone_and_said_in_valid_json(repair, monkeypatch):
    def break_down(module, *_, **__):
        next(module.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(stage, "least_squares", break_down)
    facts, pruned, state = repair()

    (broken,) = facts.repairs
    assert not broken.kept
    assert broken.divergence[1] is None
    assert _same(state.tensors, pruned.tensors)
    text = json.dumps(asdict(facts), allow_nan=False)
    assert TypeAdapter(stage.Reconstructed).validate_json(text) == facts


def test_blocks_start_from_what_was_kept(repair, monkeypatch):
    calls = []

    def fit(module, dense, graph, masks, batches, *, epochs, lr, scores_axis, progress):
        calls.append((epochs, lr, scores_axis, [len(batch) for batch in batches]))
        module.load_state_dict(dense.state_dict())

    monkeypatch.setattr(stage, "least_squares", lambda *_, **__: None)
    monkeypatch.setattr(stage, "fit_blocks", fit)
    section = BlocksSection(samples=50, epochs=2, lr=0.5, batch_size=20)
    facts, _, _ = repair(blocks=section)

    first, second = facts.repairs
    assert (first.method, second.method) == ("least_squares", "blocks")
    assert not first.kept
    assert second.kept
    assert second.divergence == (first.divergence[0], pytest.approx(0))
    assert calls == [(2, 0.5, 1, [20, 20, 10])]


def test_each_pass_has_the_same_samples_in_another_order(inputs):
    drawn = inputs.calibration.drawn_inputs("test", 50, 20)
    first, second = (torch.cat(list(drawn)) for _ in range(2))
    assert len(drawn) == 3
    assert not torch.equal(first, second)
    assert torch.equal(*(torch.sort(x, dim=0).values for x in (first, second)))
    again = inputs.calibration.drawn_inputs("test", 50, 20)
    assert torch.equal(torch.cat(list(again)), first)


def test_blocks_come_nearer_and_keep_the_zeros(repair, monkeypatch):
    monkeypatch.setattr(stage, "least_squares", lambda *_, **__: None)
    section = BlocksSection(samples=160, epochs=3)
    facts, pruned, repaired = repair(blocks=section)
    _, blocks = facts.repairs
    assert blocks.kept
    for name, mask in pruned.masks.items():
        assert not repaired.tensors[name][~mask].any()
    again = repair(blocks=section)[2]
    assert _same(again.tensors, repaired.tensors)


@pytest.mark.parametrize("is_near", [True, False])
def test_between_steps_blocks_are_trained_where_the_dense_model_is_far(
    repair, monkeypatch, is_near
):
    monkeypatch.setattr(stage, "_NEAR", float("inf") if is_near else 0.0)
    facts, *_ = repair(blocks=BlocksSection(samples=50, epochs=1), is_last=False)
    methods = [one.method for one in facts.repairs]
    assert methods == (["least_squares"] if is_near else ["least_squares", "blocks"])


BLOCKS = {"samples": 90, "samples_between": 30}


def test_the_dry_run_says_what_is_repaired_and_when(project):
    project.recipe["reconstruct"] = {"method": "blocks", "samples": 100, "blocks": BLOCKS}
    result = project.run("--dry-run", "--set", "prune.steps=3")
    assert result.exit_code == 0, result.output
    assert (
        "repair: least squares on 100 calibration samples after each of 3 steps, and where "
        "much is missing blocks on 30; at the end blocks on 90; without labels" in result.output
    )


def test_no_sample_that_is_held_out_is_fitted_to(inputs, repair, monkeypatch):
    seen = []
    monkeypatch.setattr(stage, "least_squares", lambda *given, **_: seen.extend(given[4]))
    repair(stage.LeastSquares(samples=160, positions=None, ridge=0.1))

    draws = inputs.calibration.draws
    (pool,) = (batch.inputs for batch in inputs.calibration.batches(160, draws.pool))
    assert torch.equal(*(torch.sort(x, dim=0).values for x in (torch.cat(seen), pool)))


def test_a_ridge_that_is_too_small_is_the_recipes(repair, monkeypatch):
    def refuse(*_, **__):
        raise PrecisionError("ridge must cover the rounding errors.")

    monkeypatch.setattr(stage, "least_squares", refuse)
    with pytest.raises(InputError, match=r"reconstruct\.ridge must cover"):
        repair()


def test_without_held_out_samples_no_repair_can_be_judged(inputs):
    calibration = replace(
        inputs.calibration, draws=replace(inputs.calibration.draws, holdout_share=0)
    )
    with pytest.raises(InputError, match=r"must leave .* reconstruct\. Got none of 200"):
        _check(inputs, calibration=calibration)


def test_the_graph_s_key_has_all_that_says_which_axes_are_open(inputs):
    layers, export = _layers(inputs), inputs.form.section
    for change in ({"dynamic_axes": {"x": {1: "length"}}}, {"input_name": "x"}):
        other = replace(layers, export=export.model_copy(update=change))
        assert other.digest != layers.digest


def test_values_beyond_the_memory_are_refused_with_a_number_that_fits(inputs):
    with pytest.raises(InputError, match=r"reconstruct\.samples: .* 100 samples, .* Got 20") as one:
        _check(inputs, budget=MemoryBudget(20_000, "run.memory_budget"))
    (most,) = map(int, re.findall(r"Lower it to (\d+)", str(one.value)))
    fitting = replace(SOLVE, samples=most)
    _check(inputs, budget=MemoryBudget(20_000, "run.memory_budget"), solve=fitting)
    more = replace(SOLVE, samples=most + 1)
    with pytest.raises(InputError, match=rf"Lower it to {most},"):
        _check(inputs, budget=MemoryBudget(20_000, "run.memory_budget"), solve=more)
    with pytest.raises(InputError, match=r"Set reconstruct\.method to none"):
        _check(inputs, budget=MemoryBudget(1000, "80% of the free memory"))


def test_the_dry_run_refuses_a_repair_that_does_not_fit(project):
    project.recipe["prune"] = {"sparsity": 0.5, "method": "magnitude"}
    project.recipe["reconstruct"] = {"method": "least_squares", "samples": 160}
    result = project.run("--dry-run", "--set", "run.memory_budget=20KB")
    assert result.exit_code == 2
    assert "(reconstruct.samples): least squares must hold" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"solve": stage.LeastSquares(161, None, 0.1)},
            r"reconstruct\.samples: must not exceed the 160 .* Got 161",
        ),
        (
            {"blocks": BlocksSection(samples=161)},
            r"reconstruct\.blocks\.samples: must not exceed the 160 .* Got 161",
        ),
    ],
    ids=["least squares", "blocks"],
)
def test_too_few_samples_are_refused(inputs, changes, message):
    with pytest.raises(InputError, match=message):
        _check(inputs, **changes)


def test_what_is_no_image_is_not_mirrored(inputs):
    with pytest.raises(InputError, match="needs batches of images"):
        _check(inputs, blocks=BlocksSection(samples=100, flip=True))


def _no_graph(*_):
    raise ValueError("The model must be one graph. Got a branch.")


def test_a_model_that_cannot_be_traced_is_refused(inputs, monkeypatch):
    _check(inputs)
    monkeypatch.setattr(LayerGraph, "trace", _no_graph)
    with pytest.raises(InputError, match=r"reconstruct\.method: must be none .* Got a branch"):
        _check(inputs)


def test_a_model_without_a_layer_that_can_be_repaired_is_refused(inputs, monkeypatch):
    reasons = dict.fromkeys(inputs.targets.shapes, "a recurrent weight")
    monkeypatch.setattr(LayerGraph, "trace", lambda *_: SimpleNamespace(reasons=reasons))
    with pytest.raises(InputError, match=r"Got 0\.weight \(a recurrent weight\); 3\.weight"):
        _check(inputs)


def test_a_run_repairs_after_each_step_without_labels_and_says_so(project):
    """No gradient and no label anywhere."""
    import numpy as np

    with np.load(project.folder / "train.npz") as arrays:
        np.savez(project.folder / "unlabelled.npz", x=arrays["x"][:200])
    project.recipe["data"]["splits"]["calibration"] = {"path": "unlabelled.npz"}
    project.recipe["calibrate"] = {"labels": "model"}
    project.recipe["prune"] = {"sparsity": 0.5, "method": "magnitude", "steps": 2}
    project.recipe["reconstruct"] = {"method": "least_squares", "samples": 100}
    project.recipe["recover"] = {}
    weights = []
    for name in ("one", "two"):
        project.output = project.folder / name
        result = project.run()
        assert result.exit_code == 0, result.output
        weights.append((project.output / "model.safetensors").read_bytes())

    assert weights[0] == weights[1]
    assert "reconstruct, least squares: 2 of 2 kept" in result.output
    text = (project.output / "report.md").read_text()
    assert "| reconstruct-00 | least squares |" in text
    masks = load_file(project.output / "masks.safetensors")
    pruned = load_file(project.output / "model.safetensors")
    assert not any(pruned[name][~mask].any() for name, mask in masks.items())
