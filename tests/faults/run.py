"""Runs that are killed at random moments, and started again until they end.

``python tests/faults/run.py --kills 100 --seed 1`` kills that many: the supervisor, the process
that works, or both, by SIGKILL, SIGTERM or SIGINT. It ends with 1 if a run did not end in the bytes
of an undisturbed one, made again what was finished, left something half made, or left a report
without having ended. A third of the runs come in pairs that share a cache.
"""

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and PyTorch; and threads do not survive a fork

import numpy as np
import yaml
from safetensors.numpy import save_file

RECIPE = {
    "run": {"threads": 1},
    "model": {"factory": "net.py:net"},
    "data": {
        "source": "arrays",
        "splits": {
            "calibration": {"path": "data.npz", "rows": [0, 500]},
            "recovery": {"path": "data.npz", "rows": [500, 800]},
            "validation": {"path": "data.npz", "rows": [800, 1100]},
        },
    },
    "calibrate": {"num_gradients": 400, "samples_per_gradient": 1, "gradients": "loop"},
    "fisher": {"block_size": 16},
    "prune": {"sparsity": 0.6, "steps": 4},
    "recover": {"epochs": 3, "lr": 0.01, "batch_size": 4},
    "export": {"sparse_kernels": "off"},
    "validate": {"latency": None, "gates": {"min_sparsity": 0.5}},
}
FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
"""
RESULTS = ("model.onnx", "dense.onnx", "model.safetensors", "masks.safetensors")
TIMED = ("machine", "latency")  # parts of a report
HALF_MADE = (".making-", ".removed-", ".draft-", ".writing-", ".unfinished-", "window-")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS = 60  # in which a run ends, on a busy machine
COLD = 8  # one in so many runs starts Python anew, so that kills meet the imports too


def write_project(folder: Path) -> None:
    """Model, data and recipe. No PyTorch: threads that it starts would be missing after a fork."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=1100)
    x = (rng.normal(size=(3, 6)) * 3)[y] + rng.normal(size=(1100, 6))
    np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
    state: dict[str, Any] = {
        "0.weight": rng.normal(size=(16, 6)),
        "0.bias": rng.normal(size=16),
        "1.weight": np.ones(16),
        "1.bias": np.zeros(16),
        "1.running_mean": np.zeros(16),
        "1.running_var": np.ones(16),
        "3.weight": rng.normal(size=(3, 16)),
        "3.bias": rng.normal(size=3),
    }
    tensors = {name: x.astype(np.float32) for name, x in state.items()}
    tensors["1.num_batches_tracked"] = np.array(1)
    save_file(tensors, folder / "net.safetensors")
    (folder / "net.py").write_text(FACTORY)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))


class Process:
    """One start of the command line, in a session of its own.

    Args:
        folder: Of the project.
        output: Run directory.
        cold: Whether to start Python; else this process is forked, which has PyTorch loaded. The
            command forks again, as it always does.
        cache: What the run shares with others.
    """

    def __init__(self, folder: Path, output: Path, *, cold: bool, cache: Path | None) -> None:
        self.start = time.monotonic()
        self._log = output.with_suffix(".log")
        arguments = ["recipe.yaml", "net.safetensors", "-o", str(output), "-v"]
        arguments += [] if cache is None else ["--set", f"run.cache={cache}"]
        self._alive, held = os.pipe()  # its end is closed when the last process of the run is gone
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(self._alive)
            os.chdir(folder)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            _command(arguments, held, cold=cold)
        os.close(held)

    def wait(self, until: float) -> bool:
        """Wait for all of the run's processes; whether they have ended by then."""
        left = max(0, until - time.monotonic())
        return bool(select.select([self._alive], [], [], left)[0])

    def kill(self, number: signal.Signals, target: str) -> None:
        """Send a signal to the supervisor, its child, or both."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        child = int((children.read_text().split() or [self.pid])[0])
        try:
            if target == "both":
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid if target == "supervisor" else child, number)
        except ProcessLookupError:
            pass  # it has just ended

    def close(self) -> tuple[int, str]:
        """Exit code of a run that has ended, as subprocess gives it, and what it printed."""
        os.close(self._alive)
        status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(status), self._log.read_text()


def _command(arguments: list[str], held: int, *, cold: bool) -> None:
    """Become the command line; does not return."""
    if cold:
        os.set_inheritable(held, True)
        os.execv(sys.executable, [sys.executable, "-m", "mfac_compress.pipeline", *arguments])
    from mfac_compress.pipeline.start import main

    code = 70
    try:
        sys.argv = ["mfac-compress", *arguments]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finished(output: Path) -> dict[str, tuple[int, int]]:
    """What of a run is finished, by name: artefacts, and which file says so."""
    manifests = (output / ".cache").glob("*/*/manifest.json")
    found = [(path, path.stat()) for path in manifests if ".making-" not in str(path)]
    return {path.parent.parent.name: (stat.st_ino, stat.st_mtime_ns) for path, stat in found}


def trained(output: Path) -> int:
    """How many epochs of an unfinished recovery are kept."""
    checkpoints = (output / ".cache").glob("recover*/.unfinished-*/[0-9]*")
    return max((int(path.name) for path in checkpoints), default=0)


def half_made(folder: Path) -> list[str]:
    """What should have been removed, as faults."""
    return [f"left: {each}" for each in folder.rglob("*") if each.name.startswith(HALF_MADE)]


def measured(output: Path) -> dict[str, Any]:
    """What a run has come to, without times."""
    report = json.loads((output / "report.json").read_text())
    results = {name: (output / name).read_bytes() for name in RESULTS}
    return {**results, **{f"report.{key}": report[key] for key in report if key not in TIMED}}


@dataclass
class Case:
    """One run directory, whose run is killed until it ends."""

    folder: Path
    output: Path
    expected: dict[str, Any]
    rng: random.Random
    seconds: float
    units: int
    cache: Path | None = None
    kills: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    ended: bool = False

    def go(self) -> Iterator[float]:
        """Start, kill and check, until a run ends; yields until when nothing is to be done."""
        while not self.ended and not self.faults:
            before, epochs = finished(self.output), trained(self.output)
            cold = self.rng.randrange(COLD) == 0
            process = Process(self.folder, self.output, cold=cold, cache=self.cache)
            yield from self._moment(process, len(before), cold=cold)
            killed = None
            if not process.wait(0):
                killed = self.rng.choice(SIGNALS), self.rng.choice(["supervisor", "child", "both"])
                process.kill(*killed)
                yield time.monotonic() + 0.05
                if not process.wait(process.start + SECONDS):
                    self.faults.append(f"did not end after {_named(killed)}")
                    process.kill(signal.SIGKILL, "both")
            code, said = process.close()
            self._check(before, epochs, killed, code, said)

    def _moment(self, process: Process, before: int, *, cold: bool) -> Iterator[float]:
        """Wait for the moment to kill: any time, or soon after something was finished."""
        if self.rng.random() < 0.5:
            yield process.start + self.rng.uniform(0, self.seconds + 2 * cold)
            return
        count = self.rng.randint(before + 1, max(before + 1, self.units))
        while len(finished(self.output)) < count and not process.wait(0):
            yield time.monotonic() + 0.01
        yield time.monotonic() + self.rng.uniform(0, self.seconds / 20)

    def _check(self, before: dict, epochs: int, killed: tuple | None, code: int, said: str) -> None:
        after, report = finished(self.output), self.output / "report.json"
        how = _named(killed) if killed else "no kill"
        if killed:
            self.kills[how] += 1
        wrong = [name for name, identity in before.items() if after.get(name) != identity]
        if wrong:
            self.faults.append(f"made again, or lost, after {how}: {wrong}")
        again = [epoch + 1 for epoch in range(epochs) if f"recover, epoch {epoch + 1}/" in said]
        if again:
            self.faults.append(f"epochs {again} trained again, after {how}: {said}")
        if "Traceback" in said:
            self.faults.append(f"a traceback after {how}: {said}")
        if report.is_file():
            found = measured(self.output)
            other = [name for name in found if found[name] != self.expected.get(name)]
            if other:
                self.faults.append(f"other than undisturbed, after {how}: {other}")
        if code == 0:
            self.ended = True
            if not report.is_file():
                self.faults.append(f"no report, though it ended with 0, after {how}")
            self.faults += half_made(self.output)
        elif report.is_file() and code != -signal.SIGKILL and killed != (signal.SIGKILL, "child"):
            self.faults.append(f"a report, though it ended with {code}, after {how}: {said}")
        elif not killed:
            self.faults.append(f"ended with {code}: {said}")


def _named(killed: tuple[signal.Signals, str]) -> str:
    return f"{killed[0].name} of {killed[1]}"


def _take_turns(cases: list[Case]) -> None:
    """Let runs go on side by side."""
    waiting = {index: (0.0, case.go()) for index, case in enumerate(cases)}
    while waiting:
        index = min(waiting, key=lambda each: waiting[each][0])
        until, steps = waiting[index]
        time.sleep(max(0, until - time.monotonic()))
        try:
            waiting[index] = (next(steps), steps)
        except StopIteration:
            del waiting[index]


def _pool_faults(cache: Path, case: Case) -> list[str]:
    """What is wrong with a cache whose runs have ended: it holds each artefact once."""
    stages = sorted(path.parent.name.rpartition("-")[0] for path in cache.glob("*/manifest.json"))
    wanted = sorted(finished(case.output))
    wrong = [] if stages == wanted else [f"the cache holds {stages} for {wanted}"]
    return [*wrong, *half_made(cache)]


def _undisturbed(folder: Path) -> tuple[dict[str, Any], float]:
    """What a run that nobody kills comes to, and how long it takes."""
    process = Process(folder, folder / "undisturbed", cold=False, cache=None)
    process.wait(process.start + SECONDS)
    seconds = time.monotonic() - process.start
    code, said = process.close()
    assert code == 0, said
    return measured(folder / "undisturbed"), seconds


def run(kills: int, seed: int) -> int:
    """Kill that many times; returns the number of faults."""
    # Loaded before the forks; the command line would load them after its own.
    from mfac_compress.pipeline import compression, dry_run  # noqa: F401

    killed: Counter = Counter()
    faults, runs = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_project(folder)
        expected, seconds = _undisturbed(folder)
        units = len(finished(folder / "undisturbed"))
        print(f"seed {seed}; an undisturbed run takes {seconds:.1f} s", flush=True)
        while killed.total() < kills:
            number = seed + runs
            pair = number % 3 == 2
            cache = folder / f"cache-{number}" if pair else None
            cases = [
                Case(
                    folder,
                    folder / f"out-{number}-{each}",
                    expected,
                    random.Random(f"{number}-{each}"),
                    seconds * (1 + pair),
                    units,
                    cache,
                )
                for each in range(1 + pair)
            ]
            _take_turns(cases)
            runs += 1
            for case in cases:
                killed += case.kills
                faults += [f"seed {number}: {fault}" for fault in case.faults]
            if cache:
                faults += [f"seed {number}: {fault}" for fault in _pool_faults(cache, cases[0])]
    for fault in faults:
        print(fault)
    print(", ".join(f"{count} {how}" for how, count in sorted(killed.items())))
    print(f"{killed.total()} kills; {len(faults)} faults")
    return len(faults)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    arguments = parser.parse_args()
    sys.exit(1 if run(arguments.kills, arguments.seed) else 0)
