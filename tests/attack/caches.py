"""Damaged and edited caches, none of which may change what a run publishes.

``python tests/attack/caches.py --count 200 --seed 1`` finishes one run, damages its cache, or the
one that it shares, that many times, runs again, and ends with 1 where a damage was mishandled:
another exit code or verdict, a measurement or a published file other than those of the run before,
or more than 20 s.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from mfac_compress.pipeline.cli import main

SECONDS = 20
PUBLISHED = ("model.onnx", "dense.onnx", "model.safetensors", "masks.safetensors")
MEASURED = ("verdict", "gates", "metric", "variants", "sparsity")
RECIPE = {
    "run": {"cache": "pool"},
    "model": {"factory": "net.py:net"},
    "data": {"source": "digits"},
    "prune": {"method": "magnitude", "sparsity": 0.5},
    "export": {"sparse_kernels": "off"},
    "validate": {"latency": None, "gates": {"max_metric_drop": 0.5, "min_sparsity": 0.5}},
}
FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""


SPARED = ("run.lock", "pool.lock", "CACHEDIR.TAG")


class Project:
    """A run that has passed, to be damaged again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        (folder / "net.py").write_text(FACTORY)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        save_file(net.state_dict(), folder / "net.safetensors")
        self.expected = self.run()
        assert self.expected[0] == 0, self.expected
        for name, place in self.caches.items():
            shutil.copytree(place, folder / "whole" / name)

    @property
    def caches(self) -> dict[str, Path]:
        """The run's own, and that which it shares."""
        return {"own": self.output / ".cache", "pool": self.folder / "pool"}

    def run(self) -> tuple[Any, ...]:
        """Exit code, measurements and published bytes of a run."""
        command = [str(self.folder / name) for name in ("recipe.yaml", "net.safetensors")]
        ended = CliRunner().invoke(main, [*command, "-o", str(self.output), "-q"])
        report = self.output / "report.json"
        if not report.is_file():
            return ended.exit_code, ended.output
        measured = json.loads(report.read_text())
        published = [(self.output / name).read_bytes() for name in PUBLISHED]
        return ended.exit_code, [measured[name] for name in MEASURED], published

    def restore(self, attacked: str) -> Path:
        """One cache as the first run left it; the other is empty, so that this one is used."""
        for place in self.caches.values():
            shutil.rmtree(place)
            place.mkdir()
        shutil.copytree(self.folder / "whole" / attacked, self.caches[attacked], dirs_exist_ok=True)
        return self.caches[attacked]


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def _truncate(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def _append(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randrange(1, 100)))


def _delete(file: Path, rng: random.Random) -> None:
    file.unlink()


def _replace(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.randbytes(file.stat().st_size))


def _folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path, rng: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def _device(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _swap(file: Path, rng: random.Random) -> None:
    other = rng.choice([path for path in file.parent.parent.parent.rglob("*") if path.is_file()])
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)


def _edit(file: Path, rng: random.Random) -> None:
    """Change one value of the stage's manifest."""
    manifest = file.parent / "manifest.json"
    content = json.loads(manifest.read_text())
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(content)
    holder, key = rng.choice(places)
    holder[key] = rng.choice([None, True, 0, -1, 1e300, "", "x", [], {}, [[]], 10**400])
    manifest.write_text(json.dumps(content))


def _nested(file: Path, rng: random.Random) -> None:
    (file.parent / "manifest.json").write_text("[" * 100_000)


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    _flip,
    _truncate,
    _append,
    _delete,
    _replace,
    _folder,
    _pipe,
    _device,
    _swap,
    _edit,
    _edit,
    _nested,
]


@contextlib.contextmanager
def _limited(seconds: int) -> Any:
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(6 * seconds)  # by the clock: other programs may have the cores
    try:
        yield
    finally:
        signal.alarm(0)


def attack(project: Project, seed: int) -> str | None:
    """Damage the cache once and run; what was mishandled, or None."""
    rng = random.Random(seed)
    cache = project.restore("own" if seed % 2 else "pool")
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.name not in SPARED)
    damage = DAMAGES[seed // 2 % len(DAMAGES)]
    file = rng.choice([path for path in files if path.stat().st_size])
    damage(file, rng)
    start = time.process_time()
    try:
        with _limited(SECONDS):
            found = project.run()
    except TimeoutError:
        found = ("timeout",)
    if found == project.expected and time.process_time() - start < SECONDS:
        return None
    return f"seed {seed}, {damage.__name__} of {file.relative_to(project.folder)}: {found[:2]}"


def run(count: int, seed: int) -> int:
    """Attack that many times; returns the number of those mishandled."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        faults = [fault for number in range(count) if (fault := attack(project, seed + number))]
    for fault in faults:
        print(fault)
    print(f"{count} tried; {len(faults)} mishandled")
    return len(faults)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(1 if run(arguments.count, arguments.seed) else 0)
