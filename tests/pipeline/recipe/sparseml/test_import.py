"""``mfac-compress recipe import``, and recipes of SparseML given directly."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.file import dump_recipe, load_recipe

PRUNING = Path(__file__).with_name("sound.yaml").read_text(encoding="utf-8")
DATA = "data={source: digits}"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_recipe_is_written_with_a_line_for_each_key(foreign, tmp_path):
    old, new = foreign.write(PRUNING), tmp_path / "new.yaml"
    result = run("recipe", "import", old, "-o", new)
    assert result.exit_code == 0, result.output
    assert "mapped: line 5, MFACPruningModifier.final_sparsity: 0.8: prune.sparsity: 0.8" in (
        result.output
    )
    assert f"{new}: 12 mapped, 3 approximately." in result.output
    assert f"Still to add to {new}: data" in result.output
    with pytest.raises(InputError, match="data must be"):
        load_recipe(new)
    assert load_recipe(new, [DATA]).prune.sparsity == 0.8


def test_given_data_the_recipe_is_whole(foreign, tmp_path):
    old, new = foreign.write(PRUNING), tmp_path / "new.yaml"
    sets = [
        "data={source: digits, splits: {calibration: {rows: [0, 9]}, recovery: {rows: [9, 19]}, "
        "validation: {rows: [19, 29]}}}",
        "prune.exclude=[fc]",
    ]
    result = run("recipe", "import", old, "-o", new, *(x for s in sets for x in ("--set", s)))
    assert result.exit_code == 0, result.output
    assert "Still to add" not in result.output
    recipe = load_recipe(new)
    assert recipe.prune.exclude == ("fc",)
    assert recipe == load_recipe(old, sets)


def test_nothing_is_written_over_and_nothing_after_an_error(foreign, tmp_path):
    old, new = foreign.write(PRUNING), tmp_path / "new.yaml"
    new.write_text("mine")
    result = run("recipe", "import", old, "-o", new)
    assert (result.exit_code, new.read_text()) == (2, "mine")
    assert "must be a file that is not there" in result.output

    old = foreign.write(PRUNING + "    leave_enabled: false\n")
    new = tmp_path / "other.yaml"
    assert run("recipe", "import", old, "-o", new).exit_code == 2
    assert not new.exists()
    result = run("recipe", "import", old, "-o", new, "--allow-dropped")
    assert (result.exit_code, new.exists()) == (0, True)
    assert "1 no counterpart" in result.output


def test_a_recipe_of_ours_is_not_imported(foreign, tmp_path):
    old = foreign.write("data: {source: digits}\nprune: {sparsity: 0.5}\n")
    result = run("recipe", "import", old, "-o", tmp_path / "new.yaml")
    assert result.exit_code == 2
    assert "must be one of SparseML" in result.output


@pytest.mark.parametrize("name", ["recipe", "init"])
def test_a_recipe_may_have_the_name_of_a_command(foreign, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    foreign.write("data: {source: digits}\nprune: {sparsity: 2}\n", name)
    result = run(name, "model.pt", "--dry-run")
    assert result.exit_code == 2
    assert "prune.sparsity must be" in result.output


def test_a_foreign_recipe_counts_as_it_is(foreign):
    recipe = load_recipe(
        foreign.write(PRUNING), [DATA, "recover.epochs=0", "prune.epochs_between=0"]
    )
    assert (recipe.prune.steps, recipe.fisher.block_size) == (5, 2000)
    assert recipe.where("fisher.damping").endswith("old.yaml:2 (fisher.damping)")
    assert any("approximately: line 2" in remark for remark in recipe.source.remarks)
    assert "prune:" in dump_recipe(recipe)


def test_a_foreign_recipe_asks_for_data(foreign):
    with pytest.raises(InputError) as caught:
        load_recipe(foreign.write(PRUNING))
    assert "data must be given: a recipe of SparseML names neither" in str(caught.value)
    assert "mfac-compress recipe import" in str(caught.value)


def test_a_foreign_recipe_goes_through(project):
    """From SparseML's YAML to the plan, with the words on what differs."""
    old = project.folder / "old.yaml"
    old.write_text(PRUNING.replace("2000", "64"), encoding="utf-8")
    data = yaml.safe_dump(project.recipe["data"], default_flow_style=True, width=10**6).strip()
    sets = [f"data={data}", "model.factory=net.py:net", "calibrate.num_gradients=16"]
    result = run(old, project.model, "--dry-run", *(x for s in sets for x in ("--set", s)))
    assert result.exit_code == 0, result.output
    assert "approximately: line 2, MFACPruningModifier.fisher_block_size: 2000" in result.output
    assert "in 5 step(s)" in result.output


def test_markdown_keeps_the_lines_of_its_errors(foreign):
    message = foreign.refusal(f"<!--\nwords\n-->\n---\n{PRUNING}    damp: x\n---\n", "old.md")
    assert "damp must be a number. Got 'x'." in message
    assert "old.md:13" in message
    assert "between two lines of ---" in foreign.refusal("# words\n", "old.md")
