"""What is reused is what was written, and was made by the code that is there now."""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import onnxruntime
import pytest

from mfac_compress.pipeline.run.directory import RESULTS

CHEAP = {"method": "magnitude", "sparsity": 0.5}


@pytest.fixture
def quick(project):
    """A project whose run takes no gradients and does not train."""
    project.recipe["prune"] = CHEAP
    project.recipe["recover"] = {"epochs": 0}
    return project


def _cached(project, stage, name):
    (file,) = (project.output / ".cache" / stage).glob(f"*/{name}")
    return file


def _truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file):
    content = bytearray(file.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    file.write_bytes(bytes(content))


def _empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "stage", "name"),
    [
        (_truncate, "export", "model.onnx"),
        (_flip, "export", "model.onnx"),
        (os.unlink, "export", "dense.onnx"),
        (_flip, "prune-00", "masks.safetensors"),
        (_truncate, "recover", "model.safetensors"),
        (_truncate, "validate", "manifest.json"),
        (_empty, "export", "manifest.json"),
        (os.unlink, "export", "manifest.json"),
    ],
)
def test_a_damaged_artefact_is_made_anew_and_said(quick, stage, name, damage):
    assert quick.run().exit_code == 0
    whole = (quick.output / "model.onnx").read_bytes()
    damage(_cached(quick, stage, name))

    result = quick.run("--set", "validate.gates.max_size_ratio=0.99")

    assert result.exit_code == 0, result.output
    assert f"{stage}: made anew, since in the cache" in result.output
    assert (quick.output / "model.onnx").read_bytes() == whole
    onnxruntime.InferenceSession(str(quick.output / "model.onnx"))


def test_edited_facts_do_not_turn_a_verdict(quick):
    quick.recipe["prune"] = CHEAP | {"sparsity": 0.9}
    quick.recipe["validate"]["gates"] = {"max_metric_drop": 0.01}
    assert quick.run().exit_code == 1
    manifest = _cached(quick, "validate", "manifest.json")
    content = json.loads(manifest.read_text())
    metric = content["facts"]["variants"]["sparse"]["metric"]
    metric |= {"drop": 0.0, "drop_interval": [0.0, 0.0]}
    manifest.write_text(json.dumps(content, indent=2))

    assert quick.run().exit_code == 1


def test_a_file_that_was_added_to_an_artefact_is_not_published(quick):
    assert quick.run().exit_code == 0
    shutil.copyfile(quick.model, _cached(quick, "export", "manifest.json").parent / "extra.bin")

    assert "made anew" in quick.run().output
    assert not (quick.output / "extra.bin").exists()


def test_a_stage_is_keyed_by_the_content_before_it(quick, monkeypatch):
    """Two makings of one stage may differ: by the clock, or by rounding on another machine."""
    from mfac_compress.pipeline.stages import accelerate

    assert quick.run().exit_code == 0
    made = accelerate.accelerate

    def otherwise(job, **reads):
        return replace(made(job, **reads), reason="chosen otherwise this time")

    monkeypatch.setattr(accelerate, "accelerate", otherwise)
    shutil.rmtree(quick.output / ".cache" / "accelerate")

    result = quick.run("-v")

    assert "reused" in next(line for line in result.output.splitlines() if "export " in line)
    assert "reused" not in next(line for line in result.output.splitlines() if "validate " in line)


@pytest.mark.parametrize("key", ["precision=bfloat16", "channels_last=true", "mixup=0.5"])
def test_another_way_to_train_does_not_reuse_what_was_trained(quick, key):
    quick.recipe["recover"] = {"epochs": 1, "lr": 1e-3, "distill": {}}
    assert quick.run().exit_code == 0

    result = quick.run("-v", "--set", f"recover.{key}")

    lines = result.output.splitlines()
    assert "reused" in next(line for line in lines if "prune-00 " in line)
    assert "reused" not in next(line for line in lines if "recover " in line)


def _process(project, *arguments):
    """A run in a process of its own."""
    command = [sys.executable, "-m", "mfac_compress.pipeline", str(project.write_recipe())]
    command += [str(project.model), "-o", str(project.output), "-v", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=project.folder, check=False)


@pytest.fixture
def fresh(quick, monkeypatch):
    """Runs that load the user's modules anew, as new processes would."""
    monkeypatch.syspath_prepend(quick.folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget():
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(quick.folder)):
                del sys.modules[name]

    def run():
        forget()
        return quick.run("-v")

    yield run
    forget()


def _metric(project):
    report = json.loads((project.output / "report.json").read_text())
    return report["variants"]["dense"]["metric"]["value"]


def _reused(output):
    return {line.split()[0] for line in output.splitlines() if line.endswith("reused")}


def _write(project, name, text):
    (project.folder / name).write_text(textwrap.dedent(text))


HELPERS = {
    "imported by the factory": (
        "from ops import act, hit\nfrom torch import nn\n"
        "class Act(nn.Module):\n"
        "    def forward(self, x):\n        return act(x)\n"
        "def net():\n    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), Act(), "
        "nn.Linear(16, 3))\n"
        "def score(outputs, targets):\n    return (outputs.argmax(1) == targets).float()\n",
        {"calibrate", "prune-00", "recover", "export", "validate"},
    ),
    "imported in the middle of the metric": (
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), "
        "nn.Linear(16, 3))\n"
        "def score(outputs, targets):\n    import importlib\n"
        "    return importlib.import_module('o' + 'ps').hit(outputs, targets)\n",
        {"validate"},
    ),
    "a file that the metric reads": (
        "from pathlib import Path\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), "
        "nn.Linear(16, 3))\n"
        "def score(outputs, targets):\n    names = {}\n"
        "    exec(Path(__file__).with_name('ops.py').read_text(), names)\n"
        "    return names['hit'](outputs, targets)\n",
        {"validate"},
    ),
}
GOOD = (
    "def act(x): return x.relu()\n"
    "def hit(outputs, targets): return (outputs.argmax(1) == targets).float()\n"
)
BAD = (
    "def act(x): return x.relu() * 0\n"
    "def hit(outputs, targets): return 0 * (outputs.argmax(1) == targets).float()\n"
)


@pytest.mark.parametrize("how", HELPERS)
def test_a_changed_helper_is_noticed(quick, fresh, how):
    source, made_anew = HELPERS[how]
    _write(quick, "net.py", source)
    _write(quick, "ops.py", GOOD)
    quick.recipe["task"] = {"metric": "net.py:score"}
    quick.recipe["validate"]["gates"] = {"min_sparsity": 0.4}
    assert fresh().exit_code == 0
    assert _metric(quick) > 0.9
    assert {"prune-00", "validate"} <= _reused(fresh().output)

    _write(quick, "ops.py", BAD)
    again = fresh()

    assert again.exit_code == 0, again.output
    assert _metric(quick) < 0.5
    assert not _reused(again.output) & made_anew


def test_a_file_that_is_edited_while_a_stage_runs_is_noticed(quick, fresh, monkeypatch):
    """And has its first content again when the stage ends."""
    from mfac_compress.pipeline.stages import validate

    _write(
        quick,
        "own.py",
        """
        from pathlib import Path
        def score(outputs, targets):
            factor = Path(__file__).with_name("factor.txt").read_text()
            return float(factor) * (outputs.argmax(1) == targets).float()
        """,
    )
    quick.recipe["task"] = {"metric": "own.py:score"}
    quick.recipe["validate"]["gates"] = {"min_sparsity": 0.4}
    factor, whole = quick.folder / "factor.txt", validate.validate
    factor.write_text("0.0")

    def edited_meanwhile(job, **reads):
        factor.write_text("1.00")
        made = whole(job, **reads)
        factor.write_text("0.0")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(validate, "validate", edited_meanwhile)
        assert fresh().exit_code == 0
    report = json.loads((quick.output / "report.json").read_text())
    assert any("factor.txt changed during the run" in text for text in report["warnings"])
    assert _metric(quick) > 0.9

    assert "validate: made anew, since in the cache code" in " ".join(fresh().output.split())
    assert _metric(quick) == 0


def test_what_only_the_checks_import_is_in_the_keys(quick, fresh):
    _write(quick, "ops.py", GOOD)
    _write(
        quick,
        "net.py",
        """
        from torch import nn
        class Act(nn.Module):
            def forward(self, x):
                if self.training:
                    from ops import act
                    return act(x)
                return x.relu()
        def net():
            return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), Act(), nn.Linear(16, 3))
        """,
    )
    quick.recipe["recover"] = {"epochs": 1}
    assert fresh().exit_code == 0
    manifests = (quick.output / ".cache").glob("*/*/manifest.json")
    assert not any(json.loads(path.read_text())["code"] for path in manifests)


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ({"metric": "__main__:score"}, "metric.value"),
        (
            {"further_metrics": {"own": {"metric": "__main__:score"}}},
            "further_metrics['own'].value",
        ),
    ],
    ids=["metric", "further metric"],
)
def test_a_notebooks_functions_are_noticed(quick, task, value):
    """Functions of ``__main__`` without a file, as a notebook's cells define them, and again."""
    quick.recipe["task"] = task
    quick.recipe["validate"]["gates"] = {"min_sparsity": 0.4}
    recipe = quick.write_recipe()
    cells = textwrap.dedent(
        f"""
        from mfac_compress.pipeline import compress
        def scaled(x): return factor * x
        def score(outputs, targets): return scaled((outputs.argmax(1) == targets).float())
        for factor in (1.0, 0.0):
            report = compress({str(recipe)!r}, {str(quick.model)!r}, {str(quick.output)!r})
            print(report.variants["dense"].{value})
        def score(outputs, targets): return 0.5 * (outputs.argmax(1) == targets).float()
        report = compress({str(recipe)!r}, {str(quick.model)!r}, {str(quick.output)!r})
        print(report.variants["dense"].{value})
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", cells], capture_output=True, text=True, check=True
    )
    right, none, half = map(float, ended.stdout.split())
    assert right > 0.9
    assert none == 0
    assert half == pytest.approx(right / 2)


def test_an_edited_module_that_stays_loaded_is_refused(quick, monkeypatch):
    monkeypatch.syspath_prepend(quick.folder)
    _write(quick, "stale_ops.py", GOOD)
    _write(quick, "net.py", "from stale_ops import act\n" + (quick.folder / "net.py").read_text())
    assert quick.run().exit_code == 0
    _write(quick, "stale_ops.py", BAD)

    result = quick.run()

    assert result.exit_code == 2
    assert "stale_ops.py was edited after this Python process imported it" in result.output
    sys.modules.pop("stale_ops")


def test_the_manifest_lists_code_and_files(quick):
    _write(quick, "ops.py", GOOD)
    _write(quick, "net.py", "import ops\n" + (quick.folder / "net.py").read_text())
    assert _process(quick).returncode == 0

    manifest = json.loads((quick.output / "manifest.json").read_text())

    assert {str(quick.folder / "net.py"), str(quick.folder / "ops.py")} == {
        *manifest["code"]["files"]
    }
    assert "environment variables" in manifest["code"]["not_covered"]
    assert {"model.onnx", "dense.onnx", "masks.safetensors"} <= {*manifest["files"]}


PLACES = ("import", "factory", "loss", "metric", "forward", "dataset")
ENDS = {
    "exit": "import sys; sys.exit(0)",
    "exit with a failed gate's code": "import sys; sys.exit(1)",
    "an exception of its own": "raise type('Odd', (BaseException,), {})('x')",
    "generator exit": "raise GeneratorExit",
}


@pytest.mark.parametrize(
    ("where", "end"),
    [
        *((where, "exit") for where in PLACES),
        *(("metric", end) for end in ENDS if end != "exit"),
    ],
)
def test_code_that_ends_programs_is_an_input_error(quick, where, end):
    lines = dict.fromkeys(PLACES, "pass")
    lines[where] = ENDS[end]
    source = f"""
        import numpy as np, torch
        from torch import nn
        {lines["import"]}
        class Net(nn.Sequential):
            def forward(self, x):
                {lines["forward"]}
                return super().forward(x)
        def net():
            {lines["factory"]}
            return Net(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        def loss(outputs, targets):
            {lines["loss"]}
            return nn.functional.cross_entropy(outputs, targets)
        def metric(outputs, targets):
            {lines["metric"]}
            return (outputs.argmax(1) == targets).float()
        class Data(torch.utils.data.Dataset):
            def __init__(self, name, rows):
                self.x, self.y = (np.load(name)[k][rows] for k in "xy")
            def __len__(self): return len(self.x)
            def __getitem__(self, at):
                {lines["dataset"]}
                return self.x[at], self.y[at]
        def data():
            return {{"calibration": Data("train.npz", slice(0, 200)),
                     "validation": Data("test.npz", slice(None))}}
        """
    _write(quick, "own.py", source)
    quick.recipe["model"] = {"factory": "own.py:net"}
    quick.recipe["data"] = {"factory": "own.py:data"}
    quick.recipe["task"] = {"loss": "own.py:loss", "metric": "own.py:metric"}
    quick.output.mkdir()
    (quick.output / ".cache").mkdir()
    for name in ("report.json", "model.onnx"):
        (quick.output / name).write_text("of an earlier run")

    before = os.getcwd()
    os.chdir(quick.folder)
    try:
        result = quick.run()
    finally:
        os.chdir(before)

    assert result.exit_code == 2, result.output
    assert "own.py" in result.output
    assert "Traceback" not in result.output
    assert not any((quick.output / name).exists() for name in RESULTS)


@pytest.mark.parametrize(
    ("where", "end"),
    [
        ("factory", "os._exit(0)"),  # the first of the user's code that runs
        pytest.param("metric", "os.kill(os.getpid(), 9)", marks=pytest.mark.long),
    ],
)
def test_earlier_results_do_not_survive_a_process_that_dies(quick, where, end):
    (quick.output / ".cache").mkdir(parents=True)
    for name in RESULTS[:8]:
        (quick.output / name).write_text("of an earlier run")
    lines = {"factory": "pass", "metric": "pass", where: f"import os; {end}"}
    _write(
        quick,
        "own.py",
        f"""
        from torch import nn
        def net():
            {lines["factory"]}
            return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        def metric(outputs, targets):
            {lines["metric"]}
            return (outputs.argmax(1) == targets).float()
        """,
    )
    quick.recipe["model"] = {"factory": "own.py:net"}
    quick.recipe["task"] = {"metric": "own.py:metric"}

    _process(quick)

    assert not any((quick.output / name).exists() for name in RESULTS)


def test_a_metric_that_changes_folder_moves_no_results(quick, tmp_path):
    _write(
        quick,
        "own.py",
        """
        import os
        def metric(outputs, targets):
            os.chdir("/")
            return (outputs.argmax(1) == targets).float()
        """,
    )
    quick.recipe["task"] = {"metric": "own.py:metric"}
    quick.output = quick.output.relative_to(quick.folder)
    before = os.getcwd()
    os.chdir(quick.folder)
    try:
        result = quick.run()
        assert os.getcwd() == str(quick.folder)
    finally:
        os.chdir(before)

    assert result.exit_code == 0, result.output
    assert (quick.folder / "out" / "report.json").is_file()
