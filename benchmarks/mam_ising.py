"""Compress and judge the marginalization model of `recipes/mam-ising.yaml`; draw its plot.

    OMP_NUM_THREADS=1 python benchmarks/mam_ising.py FOLDER [--plot marginalization-models.svg]

Into FOLDER go the trained model, unless the one there was trained by the same sources, the
questions that the recipe reads, and a run of the recipe for each sparsity and pattern, which has a
gate on bits per dimension. Then each file is judged here by the other metrics as well, on the same
samples and with the pipeline's intervals, and one marginal is timed. Prints a table and a last line
of JSON. Exit code 1: a gate failed; 3: there is no verdict.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mfac_compress.export import Workload, kernel_library, machine_load, open_session, predict
from mfac_compress.export.latency import compare
from mfac_compress.pipeline.file_names import IN_8_BITS, ONNX_FILES, REFERENCES, WITH_KERNELS
from mfac_compress.pipeline.inputs.task import load_task
from mfac_compress.pipeline.recipe.schema import TaskSection
from mfac_compress.pipeline.stages.metric import MetricDrop, compare_metric
from mfac_compress.recipes.models.mam_ising import questions
from mfac_compress.recipes.models.train_mam_ising import is_current

RECIPES = Path(__file__).parents[1] / "recipes"
UNSTRUCTURED = "prune.pattern=unstructured"
RUNS = {
    "unstructured-80": [UNSTRUCTURED, "prune.sparsity=0.8", "validate.gates.min_sparsity=0.8"],
    "unstructured-90": [UNSTRUCTURED],
    "blocks-90": [],
}
"""What each run changes in the recipe."""
METRICS = {
    "bits_per_dimension": {"direction": "minimize", "range": (0, 4)},
    "inconsistency": {"direction": "minimize", "range": (0, 10)},
    "log_partition_error": {"direction": "minimize"},
    "rank_correlation": {"direction": "maximize", "range": (-1, 1)},
    "rank_correlation_same_size": {"direction": "maximize", "range": (-1, 1)},
}
MAX_DROP = {
    "bits_per_dimension": 0.01,
    "inconsistency": 0.05,  # nats
    "log_partition_error": 0.05,  # nats
    "rank_correlation": 0.005,
    "rank_correlation_same_size": 0.02,
}
"""Most that a metric may get worse from dense to sparse: the worse end of the 95% interval."""
MIN_DENSE_CORRELATION = 0.99
PASSES, AT_ONCE = "D passes", "D passes as a batch"
ROWS, TARGETS = 4000, ("site", "value", "known", "log_p")
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plot", type=Path, help="picture to write; needs the extra `benchmarks`")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    path = folder / "questions.npz"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **questions(34_000, judged=ROWS))
    model = folder / "dense.safetensors"
    if not is_current(model):
        script = RECIPES / "models" / "train_mam_ising.py"
        subprocess.run([sys.executable, script, model], check=True)
    with np.load(path) as arrays:
        x = arrays["spins"][:ROWS].astype(np.float32)
        targets = {name: arrays[name][:ROWS] for name in TARGETS}
    rows: list[Row] = []
    times: dict[str, Row] = {}
    answers: dict[str, np.ndarray] = {}
    for name in arguments.runs:
        code = compress(model, folder, name)
        if code not in (0, 1):
            print(f"{name}: no verdict, exit code {code}", file=sys.stderr)
            return 3
        found = dict(files_of(folder / name))
        outputs = {file: predict(open_file(path), x, 256) for file, path in found.items()}
        answers |= {f"{name} {file}": each for file, each in outputs.items()}
        rows += [{"run": name, "gate": code == 0, **row} for row in judge(outputs, targets)]
        times[name] = dict(latencies(found, x[:1, 1:2]))
    print_table(rows, times)
    if arguments.plot:
        draw(rows, times, answers, targets, arguments.plot)
    print(json.dumps({"machine": asdict(machine_load()), "rows": rows, "times": times}))
    return 0 if all(row["passed"] and row["gate"] for row in rows) else 1


def compress(model: Path, folder: Path, name: str) -> int:
    """Run the recipe with the changes of a run. Returns its exit code."""
    changes = [f"data.folder={folder}", f"run.cache={folder / 'cache'}", *RUNS[name]]
    settings = [part for change in changes for part in ("--set", change)]
    command = ["-m", "mfac_compress.pipeline", RECIPES / "mam-ising.yaml", model]
    command += ["-o", folder / name, *settings]
    return subprocess.run([sys.executable, *command], check=False).returncode


def files_of(run: Path) -> Iterator[tuple[str, Path]]:
    """The files that a run has written, by the names of variants, the dense one first."""
    return ((name, run / file) for name, file in ONNX_FILES.items() if (run / file).is_file())


def open_file(path: Path) -> Any:
    return open_session(path, library=kernel_library())


def judge(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> Iterator[Row]:
    """Each file's metrics with their intervals, and whether all are within bounds."""
    found: dict[str, dict[str, MetricDrop]] = {}
    for name, section in METRICS.items():
        spec = f"models/mam_ising.py:{name}"
        task = load_task(TaskSection(loss="none", metric=spec, **section), folder=RECIPES)
        found[name] = compare_metric(task, 0.95, outputs, targets)[1]
    for file in outputs:
        metrics = {name: drops[file] for name, drops in found.items()}
        if file == "dense":
            correlation = metrics["rank_correlation"].interval
            passed = correlation is not None and correlation[0] >= MIN_DENSE_CORRELATION
        else:
            passed = file in REFERENCES or all(
                within(name, one.drop_interval) for name, one in metrics.items()
            )
        kept = ("value", "interval", "drop", "drop_interval")
        judged = {name: {key: getattr(one, key) for key in kept} for name, one in metrics.items()}
        yield {"file": file, "passed": bool(passed), "metrics": judged}


def within(metric: str, drop: tuple[float, float] | None) -> bool:
    """Whether the worse end of the interval of a drop is allowed."""
    return drop is not None and drop[1] <= MAX_DROP[metric]


def latencies(files: dict[str, Path], question: np.ndarray) -> Iterator[tuple[str, Row]]:
    """Time one marginal by each file, and by an autoregressive model as large as the dense one.

    Such a model has conditionals only: it takes D passes for p(x) of D spins, one after the other
    or as a batch of D.
    """
    sites = question.shape[-1]
    repeated = np.repeat(question, sites, axis=0)
    openers = {name: partial(timed_call, path, question) for name, path in files.items()}
    openers[PASSES] = partial(timed_call, files["dense"], question, sites)
    openers[AT_ONCE] = partial(timed_call, files["dense"], repeated)
    names = list(openers)
    pairs = [(name, "dense") for name in names]
    one = Workload(1, threads=1)
    found = compare([*openers.values()], one, names=names, pairs=pairs, warmup=2, runs=100)
    for name, comparison in zip(names, found, strict=True):
        ratio = comparison.ratio
        speed_up = [1 / each for each in (ratio.median, ratio.high, ratio.low)]
        ms = comparison.time.by(comparison.clock).median_ms
        yield name, {"ms": ms, "speed_up": speed_up}


def timed_call(path: Path, inputs: np.ndarray, times: int = 1) -> Callable[[], object]:
    session = open_file(path)
    feeds = {session.get_inputs()[0].name: inputs}

    def call() -> None:
        for _ in range(times):
            session.run(None, feeds)

    return call


def print_table(rows: list[Row], times: dict[str, Row]) -> None:
    """Print each file's metrics, by how much they got worse, and the times of one marginal."""
    for row in rows:
        print(f"{row['run']} {row['file']}: {'pass' if row['passed'] else 'FAIL'}")
        for name, one in row["metrics"].items():
            line = f"  {name:20} {one['value']:8.4f} {between(one['interval'])}"
            if one["drop_interval"]:
                line += f"   worse by {one['drop']:8.4f} {between(one['drop_interval'])}"
            print(line)
    for run, timed in times.items():
        for name, one in timed.items():
            middle, *ends = one["speed_up"]
            speed = f"{middle:.2f} times as fast as dense {between(ends)}"
            print(f"one marginal, {run} {name}: {one['ms']:.4f} ms, {speed}")


def between(ends: list[float] | tuple[float, float] | None) -> str:
    return "[no interval]" if ends is None else f"[{ends[0]:.4f}, {ends[1]:.4f}]"


def draw(
    rows: list[Row],
    times: dict[str, Row],
    answers: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
    path: Path,
) -> None:
    """Plot marginals against the exact ones, the metrics' losses, and the times of one marginal."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    draw_marginals(axes[0], answers, targets)
    draw_losses(axes[1], rows)
    draw_times(axes[2], times)
    figure.savefig(path)


def draw_marginals(axis: Any, answers: dict[str, np.ndarray], targets: dict[str, Any]) -> None:
    """Marginals of the first file and of the last run's pruned one."""
    exact, some = targets["log_p"][:, 1], slice(600)
    shown = [next(iter(answers)), [name for name in answers if name.endswith(" sparse")][-1]]
    for name, label in zip(shown, ("dense", shown[1].removesuffix(" sparse")), strict=True):
        axis.scatter(exact[some], answers[name][some, 1, 0], s=5, alpha=0.6, label=label)
    ends = [exact[some].min(), 0]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.set(xlabel="exact log p of some of the spins, in nats", ylabel="model's answer")
    axis.legend()


def draw_losses(axis: Any, rows: list[Row]) -> None:
    """How much worse each file is than the dense one, as a share of what is allowed."""
    shown = [row for row in rows if row["file"] in ("sparse", "int8")]
    for place, row in enumerate(shown):
        label = row["run"] + (", int8" if row["file"] in IN_8_BITS else "")
        drops = [
            (one["drop"], one["drop_interval"] or (np.nan, np.nan), MAX_DROP[name])
            for name, one in row["metrics"].items()
        ]
        at = np.arange(len(drops)) + (place - len(shown) / 2) * 0.12
        middle = [drop / most for drop, _, most in drops]
        reach = [
            [(drop - ends[0]) / most for drop, ends, most in drops],
            [(ends[1] - drop) / most for drop, ends, most in drops],
        ]
        axis.errorbar(at, middle, np.maximum(reach, 0), fmt="o", markersize=4, label=label)
    axis.axhline(1, color="black", linestyle="--", linewidth=0.8)
    axis.axhline(0, color="black", linewidth=0.8)
    names = [name.replace("_", "\n") for name in METRICS]
    axis.set(xticks=range(len(names)), ylabel="worse than dense / allowed")
    axis.set_xticklabels(names, fontsize=7)
    axis.legend(fontsize=7)


def draw_times(axis: Any, times: dict[str, Row]) -> None:
    """Milliseconds of one marginal."""
    last = next(reversed(times.values()))
    shown = {name: last[name]["ms"] for name in (PASSES, AT_ONCE, *REFERENCES) if name in last}
    shown |= {
        f"{run} {name}": one["ms"]
        for run, timed in times.items()
        for name, one in timed.items()
        if name in WITH_KERNELS.values()
    }
    axis.plot(list(shown.values()), list(shown), "o")
    for place, ms in enumerate(shown.values()):
        axis.text(ms, place, f"  {1000 * ms:.0f} µs", va="center", fontsize=8)
    axis.set(xscale="log", xlabel="one marginal, milliseconds of processor time")
    axis.set_xlim(right=3 * max(shown.values()))
    axis.invert_yaxis()


if __name__ == "__main__":
    sys.exit(main())
