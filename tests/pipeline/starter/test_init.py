"""The first recipe of a model is one that runs."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.stages import probe as stage

RECIPES = Path(__file__).parents[3] / "recipes"
DATA = (
    "data={source: arrays, splits: {calibration: {path: train.npz, rows: [0, 200]}, "
    "recovery: {path: train.npz, rows: [200, 400]}, validation: {path: test.npz}}}"
)


def _init(*arguments):
    return CliRunner().invoke(main, ["init", *map(str, arguments)])


@pytest.fixture
def net(project):
    """The project's model, and options that build it and name its recipe."""
    options = ["--factory", project.folder / "net.py:net", "-o", project.folder / "new.yaml"]
    return project, [project.model, *options]


def test_the_recipe_of_the_digits_passes_the_dry_run_once_its_data_is_filled_in(tmp_path):
    model, path = RECIPES / "models/digits.safetensors", tmp_path / "new" / "recipe.yaml"
    path.parent.mkdir()
    factory = RECIPES / "models/digits_convnet.py:digits_convnet"

    result = _init(model, "--factory", factory, "-o", path)

    assert result.exit_code == 0, result.output
    assert "5 tensors can be pruned. Fill in its section data" in result.output
    text = path.read_text()
    assert re.search(r"# +10\.weight +128 x 96 x 3 x 3 +110,592 +49\.5%\n", text)
    assert re.search(r"# +0\.weight .* left out below\n", text)
    values = yaml.safe_load(text)
    assert values["prune"]["exclude"] == ["0", "15"]
    path.write_text(text.replace("  source: arrays", "  source: digits").replace(SPLITS, ""))
    dry_run = CliRunner().invoke(main, [str(path), str(model), "--dry-run"])
    assert dry_run.exit_code == 0, dry_run.output
    assert "samples: calibration 600, recovery 600, validation 597" in dry_run.output


SPLITS = """\
  splits:
    calibration:
      path: train.npz
      rows: [0, 5000]
    recovery:
      path: train.npz
      rows: [5000, 10000]
    validation:
      path: test.npz
"""


def test_with_data_the_settings_are_those_that_were_best_on_it(net):
    project, options = net
    result = _init(*options, "--set", DATA)
    assert result.exit_code == 0, result.output
    recipe, text = load_recipe(project.folder / "new.yaml"), Path(options[-1]).read_text()
    # 160 of 200 calibration samples are not held out.
    calibrate = recipe.calibrate
    assert (calibrate.num_gradients, calibrate.samples_per_gradient) == (160, 1)
    table = re.findall(r"^# +(\d+) +(\S+) +(\d\S*)$", text, re.M)
    assert len(table) == len(stage.SETTINGS)
    divergences = [float(row[2]) for row in table]
    assert divergences == sorted(divergences)
    best = table[0]
    assert (recipe.fisher.block_size, recipe.fisher.damping) == (int(best[0]), float(best[1]))
    assert recipe.fisher.damping_unit == "mean_diagonal"
    dry_run = CliRunner().invoke(main, [options[-1].as_posix(), str(project.model), "--dry-run"])
    assert dry_run.exit_code == 0, dry_run.output


def test_what_the_user_has_said_is_kept(net):
    project, options = net
    said = [
        "fisher.damping=0.5",
        "calibrate.num_gradients=7",
        "prune.sparsity=0.3",
        "quantize=static",
    ]
    result = _init(*options, "--set", DATA, *(part for one in said for part in ("--set", one)))
    assert result.exit_code == 0, result.output
    recipe = load_recipe(project.folder / "new.yaml")
    assert "Not tried out: it was given" in (project.folder / "new.yaml").read_text()
    assert (recipe.fisher.damping, recipe.fisher.damping_unit) == (0.5, "absolute")
    assert (recipe.calibrate.num_gradients, recipe.calibrate.samples_per_gradient) == (7, 2)
    assert recipe.prune.sparsity == 0.3
    assert recipe.quantize.is_on


def test_every_commented_key_is_one_that_a_recipe_may_have(net):
    project, options = net
    assert _init(*options).exit_code == 0
    path, commented = project.folder / "new.yaml", 0
    lines = path.read_text().splitlines()
    for line in lines:
        key = re.fullmatch(r"( *)# (\w+: .*) # .*", line)
        if key is None:
            continue
        commented += 1
        name = key[2].partition(":")[0]
        others = [each for each in lines if not each.startswith(f"  {name}: ")]
        if name == "loop":
            others = [each for each in others if not each.startswith(("  epochs", "  lr"))]
        if name == "task":  # whose metric is better where it is less
            others = [each.replace("0.02", "0.03") for each in others]
        others[others.index(line)] = key[1] + key[2]
        path.write_text("\n".join(others))
        load_recipe(path)
    assert commented >= 12


def test_a_relative_factory_is_found_from_the_recipe(net, monkeypatch):
    project, _ = net
    monkeypatch.chdir(project.folder)
    Path("new").mkdir()
    assert _init("net.safetensors", "--factory", "net.py:net", "-o", "new/a.yaml").exit_code == 0
    assert load_recipe("new/a.yaml").model.factory == "../net.py:net"


def test_a_program_needs_no_factory(tmp_path):
    net = nn.Linear(6, 16).eval()
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.zeros(2, 6),), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "net.pt2")
    result = _init(tmp_path / "net.pt2", "-o", tmp_path / "new.yaml")
    assert result.exit_code == 0, result.output
    assert load_recipe(tmp_path / "new.yaml").model.factory is None


def test_names_with_line_breaks_stay_comments(net):
    project, options = net
    (project.folder / "net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    model = nn.Module()\n"
        "    model.add_module('a\\nquantize: static # b', nn.Linear(6, 16))\n"
        "    return model\n"
    )
    layer = nn.Linear(6, 16).state_dict()
    weights = {f"a\nquantize: static # b.{name}": value for name, value in layer.items()}
    torch.save(weights, project.folder / "net.pt")
    result = _init(project.folder / "net.pt", *options[1:])
    assert result.exit_code == 0, result.output
    assert not load_recipe(project.folder / "new.yaml").quantize.is_on


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model.factory must be given"),
        (["--set", "prune.sparsity=2"], "prune.sparsity must be a number"),
        (["--set", "data.source=nowhere"], "data.source must be one of"),
        (
            ["--set", "prune.masks=a", "--set", "prune.weights=b"],
            "--set must leave out prune.masks",
        ),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(project, arguments, message):
    path = project.folder / "new.yaml"
    result = _init(project.model, "-o", path, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not path.exists()


def test_a_recipe_that_is_there_is_not_replaced(net):
    _, options = net
    Path(options[-1]).write_text("mine")
    result = _init(*options)
    assert result.exit_code == 2
    assert "-o must be a file that is not there" in result.output
    assert Path(options[-1]).read_text() == "mine"
