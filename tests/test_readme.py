"""What the README tells a reader to type works."""

import re
import shlex
from pathlib import Path
from unittest.mock import create_autospec

import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mfac_compress.mfac import MaskHooks
from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.inputs.samples import LoopSplits, Samples
from mfac_compress.pipeline.recipe.schema import Recipe

ROOT = Path(__file__).parent.parent
DATA = {"data": {"factory": "my_project.data:splits"}}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_make_demo_runs_the_command_that_the_readme_shows():
    (shown,) = re.findall(r"`(mfac-compress recipes/digits\.yaml [^`]*)`", README)
    assert f"$(BIN)/{shown}" in (ROOT / "Makefile").read_text()


def test_the_example_recipe_is_valid():
    (text,) = [block for block in _blocks("yaml") if block.startswith("# recipe.yaml")]
    Recipe.model_validate(yaml.safe_load(text))


def test_the_examples_of_other_data_and_tasks_are_valid():
    (text,) = [block for block in _blocks("yaml") if block.startswith("# other data")]
    for part in yaml.safe_load_all(text):
        Recipe.model_validate({"prune": {"sparsity": 0.5}, "recover": {"epochs": 1}} | part)


def test_the_example_of_pruning_without_labels_is_valid():
    (text,) = [block for block in _blocks("yaml") if block.startswith("# pruning and repair")]
    Recipe.model_validate(DATA | yaml.safe_load(text))


def test_the_example_of_several_metrics_is_valid():
    (text,) = [block for block in _blocks("yaml") if block.startswith("# several metrics")]
    recipe = Recipe.model_validate(DATA | {"prune": {"sparsity": 0.5}} | yaml.safe_load(text))
    assert [*recipe.task.further_metrics] == [*recipe.validate_.gates.further_metrics]


def test_every_command_line_is_one_the_tool_takes(tmp_path, monkeypatch):
    """Options are parsed by the real command; the files are stand-ins, so it ends with 2."""
    monkeypatch.chdir(tmp_path)
    tool = r"(?:mfac-compress|torchrun .* -m mfac_compress\.pipeline)"
    commands = re.findall(rf"^(?:- run: )?{tool} ([^>\n]*)", README, re.M)
    assert len(commands) >= 4
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command))
        assert "No such option" not in result.output
        assert any(name in result.output for name in ("recipe.yaml", "model.onnx", "model.pt"))
        assert result.exit_code == 2


def test_the_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_python_examples_name_what_exists():
    for block in _blocks("python"):
        for line in block.splitlines():
            if line.startswith("from mfac_compress"):
                exec(line, {})


def test_the_mathematics_alone_prunes_a_model():
    prunes, inverts = (block for block in _blocks("python") if "invert(" in block)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    before = model[2].bias.clone()
    batches = [(torch.randn(4, 8), torch.randint(4, (4,))) for _ in range(150)]
    names = {"model": model, "loss": torch.nn.CrossEntropyLoss(), "batches": batches}

    exec(prunes, names)
    exec(inverts, {"gradients": torch.randn(4, 6), "x": torch.ones(6), "j": 0, "k": 1})

    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in names["masks"])
    assert zeros == 154  # 80% of 8 x 16 + 16 x 4, rounded up
    assert torch.equal(model[2].bias, before)


def test_the_training_loop_keeps_the_masks(tmp_path, monkeypatch):
    (block,) = (block for block in _blocks("python") if "MaskHooks.load" in block)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, mask = torch.nn.Linear(8, 4), torch.rand(4, 8) > 0.5
    Path("runs/mine").mkdir(parents=True)
    save_file(model.state_dict(), "runs/mine/model.safetensors")
    save_file({"weight": mask}, "runs/mine/masks.safetensors")
    batches = [(torch.randn(4, 8), torch.randint(4, (4,))) for _ in range(3)]

    exec(block, {"model": model, "loss": torch.nn.CrossEntropyLoss(), "batches": batches})

    trained = load_file("trained.safetensors")["weight"]
    assert not trained[~mask].any()
    assert trained[mask].all()


def test_the_function_that_a_run_calls_trains_and_keeps_the_masks():
    (block,) = (block for block in _blocks("python") if "def finetune" in block)
    torch.manual_seed(0)
    model, mask = torch.nn.Linear(8, 4), torch.rand(4, 8) > 0.5
    before, names = model.weight.detach().clone(), {}
    batches = [(torch.randn(4, 8), torch.randint(4, (4,))) for _ in range(3)]
    samples = create_autospec(Samples, instance=True)
    samples.batches.return_value = batches
    exec(block, names)

    with MaskHooks({"weight": model.weight}, {"weight": mask}) as handle:
        names["finetune"](model, LoopSplits(samples, samples), handle)

    assert not model.weight[~mask].any()
    assert (model.weight != before)[mask].all()
