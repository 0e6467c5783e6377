"""What a recipe asks for, as stages: in order, each given what it takes and nothing else."""

import inspect

import pytest

from mfac_compress.pipeline.digest import content_key
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.run.stage import digest_of
from mfac_compress.pipeline.schedule import plan_stages
from mfac_compress.pipeline.stages import accelerate, calibrate, prune, recover, validate


@pytest.fixture(scope="module")
def plan(module_project):
    """The stages of the project's recipe with some changes."""
    recipe = module_project.write_recipe()

    def of(*changes):
        loaded = load_recipe(recipe, changes)
        return plan_stages(loaded, load_inputs(loaded, module_project.model))

    return of


REPAIRED = ("reconstruct={method: least_squares, samples: 50}",)


def _names(stages):
    return [stage.name for stage in stages]


def _keys(stages):
    return {stage.name: content_key(digest_of(stage.reads)) for stage in stages}


def test_magnitude_takes_no_gradients(plan):
    assert "calibrate" in _names(plan())
    assert "calibrate" not in _names(plan("prune.method=magnitude"))


@pytest.mark.parametrize("method", ["mfac", "magnitude"])
def test_each_stage_comes_after_those_it_needs_and_is_given_what_it_takes(plan, method):
    stages, before = plan(f"prune.method={method}"), set()
    for stage in stages:
        assert set(stage.after.values()) <= before
        before.add(stage.name)
        inspect.signature(stage.run).bind(None, **stage.given)
        inspect.signature(stage.check).bind(None, **stage.given)


def test_pruning_and_recovery_alternate_each_from_the_state_before_it(plan):
    steps = ("prune.steps=3", "prune.schedule=linear")
    states = {
        stage.name: stage.after.get("state")
        for stage in plan(*steps, "prune.epochs_between=2", "recover.epochs=0")
        if stage.name.startswith(("prune", "recover"))
    }
    assert states == {
        "prune-00": None,
        "recover-00": "prune-00",
        "prune-01": "recover-00",
        "recover-01": "prune-01",
        "prune-02": "recover-01",
        "recover": "prune-02",
    }
    pruned = [stage.after for stage in plan(*steps) if stage.name.startswith("prune")]
    assert [after.get("state") for after in pruned] == [None, "prune-00", "prune-01"]
    assert {after["calibrated"] for after in pruned} == {"calibrate"}


def test_gradients_grow_and_a_step_reads_its_own_number_only(plan):
    steps = ("prune.sparsity=0.8", "prune.steps=3", "prune.schedule=linear")
    growing = plan(*steps, "calibrate.num_gradients={0: 20, 0.2: 30, 0.5: 40}")
    shapes = {stage.name: stage.given.get("shape") for stage in growing}
    taken = [shapes[name].num_gradients for name in ("calibrate", "prune-00", "prune-01")]
    assert [*taken, shapes["prune-02"].num_gradients] == [20, 20, 30, 40]

    before = _keys(growing)
    after = _keys(plan(*steps, "calibrate.num_gradients={0: 20, 0.2: 30, 0.5: 41}"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"prune-02", "export"}  # the file holds the recipe's hash


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        (
            (),
            ["prune-00", "reconstruct-00", "prune-01", "reconstruct", "recover"],
        ),
        (
            ("prune.epochs_between=1",),
            ["prune-00", "reconstruct-00", "recover-00", "prune-01", "reconstruct", "recover"],
        ),
        (("reconstruct.every_step=false",), ["prune-00", "prune-01", "reconstruct", "recover"]),
        (("reconstruct.method=none",), ["prune-00", "prune-01", "recover"]),
    ],
    ids=["every step", "before training", "the last step", "none"],
)
def test_each_step_is_repaired_before_the_next_one_starts_from_it(plan, changes, states):
    stages = plan("prune.steps=2", *REPAIRED, *changes)
    chain = [stage for stage in stages if stage.name.startswith(("prune", "reco"))]
    assert [stage.name for stage in chain] == states
    assert [stage.after.get("state") for stage in chain] == [None, *states[:-1]]


def test_blocks_are_trained_at_the_end_and_between_where_that_is_asked_for(plan):
    blocks = ("prune.steps=2", "reconstruct={method: blocks, samples: 50, blocks: {samples: 50}}")
    stages = {s.name: s for s in plan(*blocks)}
    assert stages["reconstruct-00"].given["blocks"] is None
    assert stages["reconstruct"].given["blocks"].samples == 50
    between = {s.name: s for s in plan(*blocks, "reconstruct.blocks.samples_between=20")}
    assert between["reconstruct-00"].given["blocks"].samples == 20
    assert between["reconstruct-00"].given["blocks"].epochs == 1
    assert between["reconstruct"].given["blocks"] == stages["reconstruct"].given["blocks"]

    before, after = _keys(stages.values()), _keys(plan(*blocks, "reconstruct.blocks.epochs=9"))
    assert {name for name in before if before[name] != after[name]} == {"reconstruct", "export"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ("validate.gates.min_sparsity=0.1", set()),
        ("validate.gates.confidence=0.9", {"validate"}),
        ("validate.latency={runs: 9}", set()),
        ("validate.latency={batch_sizes: [2]}", {"accelerate"}),
        ("run.memory_budget=1GB", set()),
        ("export.sparse_kernels=auto", {"accelerate"}),
        ("export.round_to=8", {"export"}),
        ("recover.lr=0.5", {"recover", "export"}),
        ("prune.update=single", {"prune-00", "export"}),
        ("fisher.damping=0.1", {"prune-00", "export"}),
        ("fisher.damping_unit=mean_diagonal", {"prune-00", "export"}),
        ("fisher.block_size=8", {"calibrate", "prune-00", "export"}),
        ("calibrate.gradients=vmap", {"calibrate", "export"}),
        ("data.augment={flip: true}", {"recover", "export"}),
    ],
)
def test_a_change_of_the_recipe_changes_the_keys_of_the_stages_that_it_concerns(
    plan, change, changed
):
    before, after = _keys(plan()), _keys(plan(change))
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize("stage", [calibrate, prune, recover, accelerate, validate])
@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_dry_run_and_run_make_the_same_checks(project, monkeypatch, stage, arguments):
    def refuse(*_, **__):
        raise InputError("refused by this check")

    monkeypatch.setattr(stage, "check", refuse)
    result = project.run(*arguments)
    assert result.exit_code == 2
    assert "refused by this check" in result.output
    assert not project.output.exists()


@pytest.mark.parametrize("name", ["MFAC_SPARSE_ISA", "MFAC_SPARSE_L1D"])
def test_what_the_kernels_are_told_by_the_environment_is_in_their_keys(plan, monkeypatch, name):
    """Else files would be judged by outputs of other instructions, from the cache."""
    monkeypatch.delenv(name, raising=False)
    before = _keys(plan())
    monkeypatch.setenv(name, "16")
    after = _keys(plan())
    assert {stage for stage in before if after[stage] != before[stage]} == {"accelerate"}
