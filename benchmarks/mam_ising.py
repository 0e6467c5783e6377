"""Compress the marginalization model of `recipes/mam-ising.yaml`, time one marginal; draw the plot.

    OMP_NUM_THREADS=1 python benchmarks/mam_ising.py FOLDER [--plot marginalization-models.svg]

Into FOLDER go the trained model, unless the one there was trained by the same sources, the
questions that the recipe reads, and a run of the recipe for each sparsity and pattern, which judges
its files by five metrics. Prints the times of one marginal, and a last line of JSON. Exit code 1: a
gate failed; 3: there is no verdict.
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
from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.recipes.models.mam_ising import SIDE, questions
from mfac_compress.recipes.models.train_mam_ising import is_current

RECIPES = Path(__file__).parents[1] / "recipes"
UNSTRUCTURED = "prune.pattern=unstructured"
RUNS = {
    "unstructured-80": [UNSTRUCTURED, "prune.sparsity=0.8", "validate.gates.min_sparsity=0.8"],
    "unstructured-90": [UNSTRUCTURED],
    "blocks-90": [],
}
"""What each run changes in the recipe."""
PASSES, AT_ONCE = "D passes", "D passes as a batch"
ROWS, SHOWN = 4000, 600
"""Samples that judge, and of which the plot shows marginals."""
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plot", type=Path, help="picture to write; needs the extra `benchmarks`")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--side", type=int, default=SIDE, help="of the square of spins")
    arguments = parser.parse_args()
    folder, side = arguments.folder.resolve(), arguments.side
    folder.mkdir(parents=True, exist_ok=True)
    asked = questions(34_000, judged=ROWS, side=side)
    np.savez_compressed(folder / "questions.npz", **asked)
    model = folder / "dense.safetensors"
    if not is_current(model, side):
        script = RECIPES / "models" / "train_mam_ising.py"
        subprocess.run([sys.executable, script, model, "--side", str(side)], check=True)
    x, exact = asked["spins"][:SHOWN].astype(np.float32), asked["log_p"][:SHOWN, 1]
    reports: dict[str, Report] = {}
    times: dict[str, Row] = {}
    answers: dict[str, np.ndarray] = {}
    for name in arguments.runs:
        code = compress(model, folder, name, side)
        if code not in (0, 1):
            print(f"{name}: no verdict, exit code {code}", file=sys.stderr)
            return 3
        reports[name] = Report.model_validate_json((folder / name / "report.json").read_text())
        found = dict(files_of(folder / name))
        times[name] = dict(latencies(found, x[:1, 1:2]))
        answers |= {
            label: predict(open_file(found[file]), x, 256)[:, 1, 0]
            for label, file in (("dense", "dense"), (name, "sparse"))
        }
    print_times(times)
    if arguments.plot:
        draw(reports, times, answers, exact, arguments.plot)
    verdicts = {name: report.verdict for name, report in reports.items()}
    print(json.dumps({"machine": asdict(machine_load()), "verdicts": verdicts, "times": times}))
    return 0 if set(verdicts.values()) == {"pass"} else 1


def compress(model: Path, folder: Path, name: str, side: int) -> int:
    """Run the recipe with the changes of a run. Returns its exit code."""
    changes = [f"data.folder={folder}", f"run.cache={folder / 'cache'}", *RUNS[name]]
    changes += [f"model.kwargs.side={side}"]
    settings = [part for change in changes for part in ("--set", change)]
    command = ["-m", "mfac_compress.pipeline", RECIPES / "mam-ising.yaml", model]
    command += ["-o", folder / name, *settings]
    return subprocess.run([sys.executable, *command], check=False).returncode


def files_of(run: Path) -> Iterator[tuple[str, Path]]:
    """The files that a run has written, by the names of variants, the dense one first."""
    return ((name, run / file) for name, file in ONNX_FILES.items() if (run / file).is_file())


def open_file(path: Path) -> Any:
    return open_session(path, library=kernel_library())


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


def print_times(times: dict[str, Row]) -> None:
    """Print the times of one marginal."""
    for run, timed in times.items():
        for name, one in timed.items():
            middle, *ends = one["speed_up"]
            speed = f"{middle:.2f} times as fast as dense [{ends[0]:.2f}, {ends[1]:.2f}]"
            print(f"one marginal, {run} {name}: {one['ms']:.4f} ms, {speed}")


def draw(
    reports: dict[str, Report],
    times: dict[str, Row],
    answers: dict[str, np.ndarray],
    exact: np.ndarray,
    path: Path,
) -> None:
    """Plot marginals against the exact ones, the metrics' losses, and the times of one marginal."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    draw_marginals(axes[0], answers, exact)
    draw_losses(axes[1], reports)
    draw_times(axes[2], times)
    figure.savefig(path)


def draw_marginals(axis: Any, answers: dict[str, np.ndarray], exact: np.ndarray) -> None:
    """Marginals of the dense file and of the last run's pruned one."""
    for label in ("dense", [*answers][-1]):
        axis.scatter(exact, answers[label], s=5, alpha=0.6, label=label)
    ends = [exact.min(), 0]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.set(xlabel="exact log p of some of the spins, in nats", ylabel="model's answer")
    axis.legend()


def draw_losses(axis: Any, reports: dict[str, Report]) -> None:
    """How much worse each file is than the dense one, as a share of what is allowed."""
    files = [(run, name) for run in reports for name in ("sparse", "int8")]
    for place, (run, name) in enumerate(files):
        found = dict(losses(reports[run], name))
        at = np.arange(len(found)) + (place - len(files) / 2) * 0.12
        low, middle, high = np.array([*found.values()]).T
        reach = np.stack([middle - low, high - middle])
        label = run + (", int8" if name in IN_8_BITS else "")
        axis.errorbar(at, middle, np.maximum(reach, 0), fmt="o", markersize=4, label=label)
    axis.axhline(1, color="black", linestyle="--", linewidth=0.8)
    axis.axhline(0, color="black", linewidth=0.8)
    names = [name.replace("_", "\n") for name in found]
    axis.set(xticks=range(len(names)), ylabel="worse than dense / allowed")
    axis.set_xticklabels(names, fontsize=7)
    axis.set_ylim(top=max(1.8, axis.get_ylim()[1]))  # room for the legend above what is allowed
    axis.legend(fontsize=7, ncols=2, loc="upper center")


def losses(report: Report, variant: str) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Of each metric with a gate on its drop: that, and its interval around it, as shares.

    Yields:
        A name, and the lower end, the drop itself and the upper end over the gate's threshold; NaN
        where there is no interval.
    """
    measured = report.variants[variant]
    for gate in report.gates:
        *further, kind = gate.name.split(".")
        if kind == "max_metric_drop" and gate.variant == variant:
            one = measured.further_metrics[further[-1]] if further else measured.metric
            name = further[-1] if further else report.metric.name.rpartition(":")[2]
            low, high = one.drop_interval or (np.nan, np.nan)
            yield name, tuple(each / gate.threshold for each in (low, one.drop, high))


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
    axis.set(xscale="log", xlabel="one marginal, ms of processor time")
    axis.set_xlim(right=3 * max(shown.values()))
    axis.invert_yaxis()


if __name__ == "__main__":
    sys.exit(main())
