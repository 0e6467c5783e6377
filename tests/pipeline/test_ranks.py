"""Several processes, started by torchrun, give what one gives, or end as one."""

import json
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mfac_compress.pipeline.compression import load
from mfac_compress.pipeline.errors import CompressError
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks, open_ranks
from mfac_compress.pipeline.run.cache import StageCache
from mfac_compress.pipeline.run.directory import RESULTS
from mfac_compress.pipeline.run.runner import StageClock, check_stages, run_stages
from mfac_compress.pipeline.schedule import plan_stages

RECIPES = {
    "sequential": {
        "fisher": {"block_size": 8, "blocks": "row", "damping": 0.1},
        "prune": {"sparsity": 0.5, "steps": 2, "first_order": True, "selection": "sequential"},
        # 200 samples in batches of 33: uneven shares, and a last batch of two.
        "recover": {"epochs": 2, "lr": 0.3, "batch_size": 33, "batchnorm": "never"},
    },
    "joint": {
        "calibrate": {"num_gradients": 33, "samples_per_gradient": 2, "gradients": "vmap"},
        "fisher": {"block_size": 16, "damping": 0.1, "damping_unit": "mean_diagonal"},
        "prune": {"sparsity": 0.6, "steps": 2},
        "recover": {"epochs": 2, "lr": 0.01, "optimizer": "mfac", "window": {"num_gradients": 6}},
    },
    "layers": {
        # The Fisher says how many weights each tensor loses; one process does the rest.
        "fisher": {"block_size": 8, "damping": 0.1},
        "prune": {
            "sparsity": 0.5,
            "steps": 2,
            "method": "layerwise",
            "allocation": "fisher",
            "layerwise": {"samples": 100},
        },
        "reconstruct": {"method": "blocks", "samples": 100, "blocks": {"samples": 100}},
        "recover": {
            "epochs": 2,
            "lr": 0.3,
            "batch_size": 33,
            "batchnorm": "never",
            "distill": {"weight": 0.9, "layers": ["2"]},
        },
    },
    "full": {
        # Ahead of batch norm some gradients are rounding and no more, by which AdamW steps.
        "model": {"factory": "models.py:plain"},
        "calibrate": {"num_gradients": 33, "samples_per_gradient": 2, "labels": "model"},
        "fisher": {"block_size": "full", "damping": 1e-6},
        "prune": {"sparsity": 0.6, "steps": 2, "first_order": True},
        "recover": {"epochs": 2, "lr": 0.01, "optimizer": "adamw", "batch_size": 64},
    },
}
OTHER_MODELS = """
import torch
from torch import nn

class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0) if self.training else x

def of(layer):
    return nn.Sequential(nn.Linear(6, 16), layer, nn.ReLU(), nn.Linear(16, 3))

def plain():
    return of(nn.Identity())

def dropout():
    return of(nn.Dropout(0.5))

def mixing():
    return of(Mixing())
"""
ONE_BLOCK = {
    "calibrate": {"num_gradients": 150, "samples_per_gradient": 1},
    "fisher": {"block_size": "full"},
}
# What only some processes would notice, and what only one can say.
REFUSED = {
    "dropout": ({"model": {"factory": "models.py:dropout"}}, "recover.epochs.*random"),
    "mixing": ({"model": {"factory": "models.py:mixing"}}, "recover.epochs.*depend on each other"),
    "blocks": (ONE_BLOCK, "fisher.block_size.*1 blocks for 2 processes"),
    "infinite": ({"task": {"loss": "loss.py:not_finite_in_1"}}, "^process 1: Gradients.*finite"),
}
LOSS = """
import os, signal, time, traceback
from torch.nn.functional import cross_entropy

def not_finite_in_1(outputs, targets):
    stage = {frame.name for frame in traceback.extract_stack()}
    value = cross_entropy(outputs, targets)
    return value * float("inf") if "calibrate" in stage and os.environ["RANK"] == "1" else value

def deadly(outputs, targets):
    stages = {frame.name for frame in traceback.extract_stack()}
    rank, stage = os.environ.get("DIES", "0 never").split()
    if stage in stages and os.environ["RANK"] == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return cross_entropy(outputs, targets)

def endless(outputs, targets):
    stages = {frame.name for frame in traceback.extract_stack()}
    if os.environ["HANGS"] == os.environ["RANK"] and "calibrate" in stages:
        time.sleep(600)
    return cross_entropy(outputs, targets)
"""
# One is stopped from outside, as often within an exchange as before one.
STOPPED = """
import os, signal, sys, threading, torch
from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.ranks import open_ranks

with open_ranks() as ranks:
    ranks.wait_at_most(0.5)
    if ranks.rank == int(sys.argv[1]):
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGSTOP)).start()
    try:
        while True:
            ranks.all_reduce(torch.ones(1000))
    except StageError as error:
        sys.exit(str(error))
"""


def _long(value: object):
    """What the others find, too: all exchanges between processes wait in the same way."""
    return pytest.param(value, marks=pytest.mark.long)


def _go_through(recipe: Path, ranks: Ranks) -> Path:
    """The stages that processes share; returns the folder of their artefacts."""
    loaded, inputs = load(recipe, recipe.with_suffix(".safetensors"), (), False, ranks)
    stages = plan_stages(loaded, inputs)
    check_stages(stages, ranks)
    shared = stages[: [stage.name for stage in stages].index("export")]
    folder = recipe.parent / f"{recipe.stem}-{ranks.size}"
    cache_of = partial(StageCache, folder, code=inputs.code)
    run_stages(shared, cache_of, inputs.code, ranks, StageClock(Progress()))
    return folder


def _read(folder: Path, stage: str, name: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / stage).glob(f"*/{name}.safetensors")
    return load_file(file)


def _main(folder: Path) -> None:
    """What torchrun starts: all recipes, and what became of those that are to be refused."""
    with open_ranks() as ranks:
        for name in RECIPES:
            _go_through(folder / f"{name}.yaml", ranks)
        refusals = {}
        for name in REFUSED:
            try:
                _go_through(folder / f"{name}.yaml", ranks)
            except CompressError as error:
                refusals[name] = [str(error), error.exit_code, getattr(error, "reported", False)]
        (folder / f"refusals-{ranks.rank}.json").write_text(json.dumps(refusals))


def _torchrun(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def _command(project, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    recipe = project.write_recipe().name
    command = ["-m", "mfac_compress.pipeline", recipe, project.model.name, "-o", "out"]
    return _torchrun(project.folder, *command, *arguments, **environment)


def _blur(folder: Path) -> None:
    """Classes that overlap, so that there is something left to learn."""
    noise = np.random.default_rng(5)
    for path in folder.glob("*.npz"):
        with np.load(path) as data:
            x, y = data["x"], data["y"]
        np.savez(path, x=x + 3 * noise.normal(size=x.shape).astype(np.float32), y=y)


@pytest.fixture(scope="module")
def shared(module_project):
    """A project after two processes went through all recipes."""
    project = module_project
    _blur(project.folder)
    (project.folder / "models.py").write_text(OTHER_MODELS)
    (project.folder / "loss.py").write_text(LOSS)
    model = load_file(project.model)
    own = {key: value for key, value in model.items() if not key.startswith("1.")}
    common = project.recipe
    for name, changes in (RECIPES | {n: c for n, (c, _) in REFUSED.items()}).items():
        project.recipe = common | changes
        project.write_recipe().rename(project.folder / f"{name}.yaml")
        weights = own if "model" in changes else model
        save_file(weights, project.folder / f"{name}.safetensors")

    result = _torchrun(project.folder, __file__, str(project.folder))

    assert result.returncode == 0, result.stderr
    return project


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_give_the_masks_and_weights_of_one_and_none_holds_all(shared, name):
    alone = _go_through(shared.folder / f"{name}.yaml", Ranks())
    together = shared.folder / f"{name}-2"
    sizes, (whole,) = (
        [path.stat().st_size for path in folder.glob("calibrate/*/fisher-*")]
        for folder in (together, alone)
    )
    assert len(sizes) == 2
    assert max(sizes) < 0.7 * whole, "a process holds all columns"

    for stage in ("prune-01", "recover"):
        masks = _read(together, stage, "masks")
        for key, mask in _read(alone, stage, "masks").items():
            assert masks[key].equal(mask)
        weights = _read(together, stage, "model")
        for key, tensor in _read(alone, stage, "model").items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-5, atol=1e-5)
    learnt = weights["3.bias"] - load_file(shared.model)["3.bias"]
    assert learnt.abs().max() > 1e-3, "recovery did nothing"


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_everyones_and_reported_once(shared, name):
    first, second = (
        json.loads((shared.folder / f"refusals-{rank}.json").read_text())[name] for rank in (0, 1)
    )
    assert re.search(REFUSED[name][1], first[0])
    assert (first[1:], second[1:]) == ([2, False], [2, True])


def test_a_wrong_recipe_gives_one_message_and_its_exit_code(project):
    result = _command(project, "--set", "calibrate.num_gradients=81")

    assert result.returncode == 1, "torchrun's own"
    assert result.stderr.count("error: calibrate.num_gradients") == 1, result.stderr
    assert result.stderr.count("error: ") == 1, result.stderr
    assert "exitcode  : 2" in result.stderr
    assert not project.output.exists()


def test_a_failed_gate_gives_one_report_and_the_exit_code_of_gates(project):
    project.recipe["validate"]["gates"] = {"min_sparsity": 0.9}

    result = _command(project, "--json")

    assert json.loads(result.stdout)["verdict"] == "fail", result.stderr
    assert result.returncode == 1
    assert "exitcode  : 1" in result.stderr
    written = {path.name for path in project.output.iterdir()}
    assert written >= {"model.onnx", "dense.onnx", "masks.safetensors", "report.json"}
    assert json.loads((project.output / "manifest.json").read_text())["processes"] == 2


@pytest.mark.parametrize("dies", ["0 prune", _long("1 calibrate"), _long("1 recover")])
def test_a_process_that_is_killed_ends_the_run_without_results(project, dies):
    (project.folder / "loss.py").write_text(LOSS)
    project.recipe["task"] = {"loss": "loss.py:deadly"}
    project.recipe["prune"]["steps"] = 2
    (project.output / ".cache").mkdir(parents=True)
    (project.output / "report.json").write_text("of an earlier run")

    result = _command(project, DIES=dies)

    assert result.returncode == 1
    assert "exitcode  : -9" in result.stderr
    assert result.stderr.count("error: stage ") == 1, result.stderr
    assert not {path.name for path in project.output.glob("*")} & set(RESULTS)
    stage = dies.split()[1]
    # The first step takes the gradients that are there, and needs no loss.
    stage = "prune-01" if stage == "prune" else stage
    assert not list((project.output / ".cache").glob(f"{stage}*/*/manifest.json"))
    assert project.run().exit_code == 0, "what is left is in nobody's way"


def test_a_process_that_hangs_ends_the_run_and_is_named(project):
    (project.folder / "loss.py").write_text(LOSS)
    project.recipe["task"] = {"loss": "loss.py:endless"}

    result = _command(project, "--set", "run.rank_timeout=1", HANGS="1")

    assert result.returncode == 1
    assert "Got nothing from rank 1 within 1 s" in result.stderr, result.stderr
    assert result.stderr.count("run.rank_timeout") == 1, result.stderr
    assert not {path.name for path in project.output.glob("*")} & set(RESULTS)


@pytest.mark.parametrize("stops", [_long(0), 1])
def test_a_process_that_is_stopped_in_the_midst_of_exchanges_is_named(stops):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STOPPED, str(stops)],
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        _, said = processes[1 - stops].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.wait()

    assert f"Got nothing from rank {stops} within 0.5 s" in said


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fast_exporter import fast_exporter

    with fast_exporter():
        _main(Path(sys.argv[1]))
