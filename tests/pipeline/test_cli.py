"""The command line: subcommands, outputs, and that a dry run writes nothing."""

import json
import subprocess
import sys
import zipfile

import torch
from click.testing import CliRunner

from mfac_compress.pipeline.cli import main


def test_the_first_argument_may_be_a_subcommand_or_a_recipe(project):
    schema = CliRunner().invoke(main, ["schema"])
    assert json.loads(schema.output)["properties"]["prune"]

    recipe = CliRunner().invoke(main, ["nowhere.yaml", "net.pt"])
    assert recipe.exit_code == 2
    assert "nowhere.yaml" in recipe.output


def test_the_reports_schema_is_there_too():
    result = CliRunner().invoke(main, ["schema", "report"])
    assert {"verdict", "gates", "variants"} <= set(json.loads(result.output)["required"])


def test_a_dry_run_lists_everything_and_writes_nothing(project):
    project.recipe["prune"]["exclude"] = ["3"]
    before = sorted(project.folder.iterdir())

    result = project.run("--dry-run")

    assert result.exit_code == 0, result.output
    assert "0.weight" in result.output
    assert "16 x 6" in result.output
    assert "prune.exclude: 3" in result.output
    assert "a bias" in result.output
    assert "weights: 96, to remove 48 (50.00%)" in result.output
    assert "calibration 200, recovery 200, validation 200" in result.output
    assert "fits" in result.output
    assert sorted(path for path in project.folder.iterdir() if path.name != "recipe.yaml") == before


def test_a_dry_run_says_what_does_not_fit(project):
    result = project.run("--dry-run", "--set", "run.memory_budget=10KB")
    assert "DOES NOT FIT" in result.output


def test_quiet_says_nothing(project):
    assert project.run("-q").output == ""


def test_quiet_says_a_failed_gate_in_one_line(project):
    project.recipe["prune"] = {"method": "magnitude", "sparsity": 0.5}
    project.recipe["validate"]["gates"] = {"min_sparsity": 0.9, "max_parity_error": 1e-3}
    result = project.run("-q")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("FAIL: 1 of 2 gates failed")
    assert "failed: min_sparsity. See " in line


def test_json_is_the_report_and_nothing_else(project):
    result = project.run("--json")

    assert json.loads(result.stdout)["verdict"] == "pass"
    assert "PASS" in result.stderr


def test_the_verdict_table_ends_the_run(project):
    output = project.run().output
    assert "accuracy" in output
    assert "results:" in output
    assert output.splitlines()[-1].startswith("PASS: 3 gates passed")


def test_without_gates_nothing_is_judged(project):
    project.recipe["validate"]["gates"] = {}
    result = project.run("--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verdict"] == "none"
    assert "NOT JUDGED" in result.stderr
    assert "PASS" not in result.stderr


def test_a_dry_run_fails_where_the_run_would(project):
    result = project.run("--dry-run", "--set", "calibrate.num_gradients=81")
    assert result.exit_code == 2
    assert "calibrate.num_gradients" in result.output
    assert "Tensors to prune" in result.output


def _own_metric(project, returns):
    (project.folder / "own.py").write_text(
        "import torch\n"
        "def score(outputs, targets):\n"
        "    right = (outputs.argmax(1) == targets).double()\n"
        f"    return {returns}\n"
    )
    project.recipe["task"] = {"metric": "own.py:score", "range": [0, 1]}


def test_a_wrong_range_of_the_metric_is_found_before_the_work(project):
    _own_metric(project, "100 * right")
    for arguments in (["--dry-run"], []):
        result = project.run(*arguments)
        assert result.exit_code == 2
        assert "task.range must hold every value of the metric. Got [0, 1]" in result.output
    assert not (project.output / ".cache").exists()


def test_a_metric_that_needs_more_samples_is_not_refused_before_the_work(project):
    _own_metric(project, "float('nan')")
    assert project.run("--dry-run").exit_code == 0


def test_what_a_loss_prints_does_not_come_between_the_json(project):
    (project.folder / "loss.py").write_text(
        "from torch.nn.functional import cross_entropy\n"
        "def loss(outputs, targets):\n"
        "    print('in the loss')\n"
        "    return cross_entropy(outputs, targets)\n"
    )
    project.recipe["task"] = {"loss": "loss.py:loss"}
    # Function transforms may call the loss without its prints; the trial before the run does not.
    result = project.run("--json")

    assert "in the loss" in result.stderr
    assert json.loads(result.stdout)["verdict"] == "pass"


def test_who_stops_reading_the_json_changes_no_exit_code():
    command = [sys.executable, "-m", "mfac_compress.pipeline", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_an_error_of_our_own_is_no_failed_gate(project, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("mfac_compress.pipeline.verdict.report_text.print_verdict", fail)
    result = project.run()
    assert result.exit_code == 3
    assert result.output.endswith("error: stage command line: RuntimeError: a bug\n")


def test_pytorchs_own_tracebacks_do_not_stand_above_the_message(project):
    """PyTorch logs to the stderr that it found when it was imported: hence a process."""
    program = project.folder / "net.pt2"
    exported = torch.export.export(torch.nn.Linear(6, 3), (torch.zeros(2, 6),))
    torch.export.save(exported, program)
    content = {}
    with zipfile.ZipFile(program) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(program, "w") as archive:
        for name, part in content.items():
            archive.writestr(name, part.replace(b"aten.linear", b"aten.lineax"))
    project.recipe["model"] = {}
    command = [sys.executable, "-m", "mfac_compress.pipeline", str(project.write_recipe())]

    ended = subprocess.run(
        [*command, str(program), "--dry-run"], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr


def test_code_that_leaves_the_process_gives_no_pass(project):
    (project.folder / "net.py").write_text("import os\ndef net():\n    os._exit(0)\n")
    command = [sys.executable, "-m", "mfac_compress.pipeline", str(project.write_recipe())]
    ended = subprocess.run(
        [*command, str(project.model), "--dry-run"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3
    assert "must end with a verdict or an error" in ended.stderr
