"""Architectures of public collections with random weights: what becomes of them as they come.

    OMP_NUM_THREADS=1 python benchmarks/architectures.py [--only 'timm/resnet*' ...] [--log FILE]

Needs timm, torchvision, transformers and segmentation_models_pytorch, which
`pip install '.[architectures]'` installs; nothing else is downloaded.
Each architecture of zoo.py is built small, and compressed with a tiny recipe on random data: first
the dry run, then the whole command, in processes of their own. The outcomes:

passed       the command ends with a verdict
refused      the dry run says why it cannot be compressed
failed late  the dry run passes, and the command fails: a defect
zeros lost   the gate on the zeros in the ONNX file fails: a defect
unsaid       little of the model can be pruned, and the verdict's line does not say so: a defect
traceback    an error that nothing has put in words: a defect
not built    the collection cannot make it, or it cannot run by itself
timed out    the time limit is over

The exit code is 1 where there is a defect. With --log, a second command goes on where the first one
was stopped. The last line is JSON.
"""

import argparse
import fnmatch
import gc
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import torch
import yaml
from fast_exporter import fast_exporter
from zoo import ARCHITECTURES, Architecture, write_model

from mfac_compress.export import machine_load
from mfac_compress.export.silence import silence
from mfac_compress.pipeline.cli import main as command_line
from mfac_compress.pipeline.cli_exits import silence_pytorch
from mfac_compress.pipeline.verdict.warnings import LITTLE

DEFECTS = ("failed late", "zeros lost", "unsaid", "traceback")
_ZOO = Path(__file__).with_name("zoo.py").resolve()
_PASSED, _GATE_FAILED, _INVALID = 0, 1, 2


@dataclass(frozen=True)
class Result:
    """What became of an architecture.

    Attributes:
        name: Of the architecture.
        outcome: See the head of this file.
        said: The line of the verdict, or the first line of the error.
        parameters: Number of them; None if there is no report.
        prunable: Share of them that was matched for pruning; None likewise.
        seconds: Of all its processes, by the clock.
    """

    name: str
    outcome: str
    said: str
    parameters: int | None = None
    prunable: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; None where the time limit was over.
        text: What it wrote.
    """

    code: int | None
    text: str

    @property
    def error(self) -> str:
        """The first line of its error; without one, the last line."""
        lines = [line for line in self.text.splitlines() if line.strip()] or ["nothing was said"]
        return next((line for line in lines if line.startswith("error: ")), lines[-1])

    @property
    def verdict(self) -> str:
        """The line of the verdict, which comes last and may be wrapped."""
        found = re.findall(r"^(?:PASS|FAIL|NOT JUDGED)\b.*", self.text, re.MULTILINE | re.DOTALL)
        return " ".join(found[-1].split()) if found else self.error


def recipe_of(name: str, architecture: Architecture) -> dict[str, Any]:
    """A recipe that takes an architecture through all stages with as little work as possible."""
    own = {"loss": f"{_ZOO}:mean_square", "metric": f"{_ZOO}:mean_size"}
    model: dict[str, Any] = {"factory": f"{_ZOO}:build", "kwargs": {"name": name}}
    if architecture.output is not None:
        model["output"] = architecture.output
    return {
        "model": model if architecture.task is None else {"task": architecture.task},
        "data": {"factory": f"{_ZOO}:splits", "kwargs": {"name": name}},
        "task": own if architecture.targets == "none" else {},
        "calibrate": {"labels": "model", "num_gradients": 8, "samples_per_gradient": 1},
        "fisher": {"block_size": 8},  # not more than gradients: all blocks are inverted at once
        "prune": {"sparsity": 0.5, "steps": 1, "selection": "independent", "update": "single"},
        "recover": {"epochs": 0},
        "export": {"sparse_kernels": "off"},
        "validate": {"latency": None, "gates": {"min_sparsity": 0.49}},
        "run": {"threads": 1, "device": "cpu"},
    }


def sweep(names: Sequence[str], timeout: float) -> Iterator[Result]:
    """Take architectures through both commands, one after the other."""
    for name in names:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            result = _compress(name, Path(folder), timeout)
        yield replace(result, seconds=round(time.monotonic() - start, 1))


def _compress(name: str, folder: Path, timeout: float) -> Result:
    architecture = ARCHITECTURES[name]
    recipe, model, output = folder / "recipe.yaml", folder / architecture.file, folder / "run"
    recipe.write_text(yaml.safe_dump(recipe_of(name, architecture)), encoding="utf-8")
    built = run_apart(partial(write_model, architecture, model), folder, timeout)
    if built.code != _PASSED:
        return Result(name, "timed out" if built.code is None else "not built", built.error)
    dry_run = run_apart(partial(_command, str(recipe), str(model), "--dry-run"), folder, timeout)
    if dry_run.code != _PASSED:
        return Result(name, failure(dry_run, "refused"), dry_run.error)
    whole = run_apart(
        partial(_command, str(recipe), str(model), "-o", str(output)), folder, timeout
    )
    if whole.code not in (_PASSED, _GATE_FAILED):
        return Result(name, failure(whole, "failed late"), whole.error)
    sparsity = json.loads((output / "report.json").read_text(encoding="utf-8"))["sparsity"]
    share = sparsity["weights"] / sparsity["parameters"]
    outcome = "zeros lost" if whole.code == _GATE_FAILED else "passed"
    if share < LITTLE and "of the model" not in whole.verdict:
        outcome = "unsaid"
    return Result(name, outcome, whole.verdict, sparsity["parameters"], round(share, 4))


def failure(ended: Ended, refusal: str) -> str:
    """The outcome of a command that failed, by what its refusal is called."""
    if ended.code is None:
        return "timed out"
    if "Traceback (most recent call last)" in ended.text:
        return "traceback"
    return refusal if refusal == "failed late" or ended.code == _INVALID else "traceback"


def _command(*arguments: str) -> None:
    """The command mfac-compress, in this process, which it ends."""
    command_line(arguments, prog_name="mfac-compress")


def run_apart(call: Callable[[], Any], folder: Path, timeout: float) -> Ended:
    """Call a function in a process of its own, a copy of this one: libraries are loaded once."""
    log = folder / "log.txt"
    process = multiprocessing.get_context("fork").Process(target=_logged, args=(call, log))
    process.start()
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"))


def _logged(call: Callable[[], Any], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    call()


def _row(result: Result) -> str:
    share = "" if result.prunable is None else f"{result.prunable:.1%}"
    count = "" if result.parameters is None else f"{result.parameters:,}"
    said = result.said.replace("|", "/")
    return f"| {result.name} | {count} | {share} | {result.outcome} | {result.seconds:g} | {said} |"


def _chosen(patterns: Sequence[str]) -> list[str]:
    """The names that match some shell patterns, in the order of the patterns."""
    matching = (name for p in patterns for name in ARCHITECTURES if fnmatch.fnmatch(name, p))
    return list(dict.fromkeys(matching))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names")
    parser.add_argument(
        "--log", type=Path, help="file to which results go, and from which to go on"
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each process")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    arguments = parser.parse_args()
    if not _chosen(arguments.only):
        parser.error(f"--only must match a name. Got {' '.join(arguments.only)}. See --list.")
    return arguments


def _logged_results(log: Path | None) -> dict[str, Result]:
    """Results of an earlier command, by name."""
    if log is None or not log.exists():
        return {}
    lines = log.read_text(encoding="utf-8").splitlines()
    return {result.name: result for result in (Result(**json.loads(line)) for line in lines)}


def _load_libraries() -> dict[str, str]:
    """Import what the processes need, before there are any, and return the versions."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    ARCHITECTURES["timm/test_resnet"].make()
    import segmentation_models_pytorch  # noqa: F401
    import transformers  # noqa: F401

    from mfac_compress.pipeline import compression, dry_run  # noqa: F401

    silence_pytorch()
    with silence():  # the exporter loads most of its code when it is first used
        torch.onnx.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),), dynamo=True, verbose=False)
    gc.collect()
    gc.freeze()  # a process need not go through what it has from this one, again and again
    collections = ("timm", "torchvision", "transformers", "segmentation_models_pytorch")
    packages = ("torch", "onnxruntime", *collections)
    return {name: version(name) for name in packages}


def main() -> int:
    arguments = _arguments()
    names = _chosen(arguments.only)
    if arguments.list:
        print("\n".join(names))
        return 0
    with fast_exporter():
        return _sweep(names, arguments.log, arguments.timeout)


def _sweep(names: Sequence[str], log: Path | None, timeout: float) -> int:
    """Take architectures through both commands, print what becomes of them, and log it."""
    versions = _load_libraries()
    found = _logged_results(log)
    print("| architecture | parameters | can be pruned | outcome | seconds | what it says |")
    print("|---|---|---|---|---|---|")
    results = [found[name] for name in names if name in found]
    print("".join(f"{_row(result)}\n" for result in results), end="")
    for result in sweep([name for name in names if name not in found], timeout):
        print(_row(result), flush=True)
        results.append(result)
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
    counts = Counter(result.outcome for result in results)
    rows = [asdict(result) for result in results]
    machine = asdict(machine_load())
    print(json.dumps({"counts": counts, "versions": versions, "machine": machine, "rows": rows}))
    return int(any(counts[defect] for defect in DEFECTS))


if __name__ == "__main__":
    sys.exit(main())
