"""The shipped recipes, run in turn as a user runs them, and the table of what they give.

    python benchmarks/recipes.py --weights FOLDER --data FOLDER [--only NAME ...] [-o build/recipes]

FOLDER of weights has the checkpoints that the recipes name, FOLDER of data their data sets; a
recipe whose checkpoint is not there is left out, and that is said. The runs stay in the output
folder, and a second command goes on from their caches. Each row is a file of a run: its zeros;
its metric, and how much worse that is than the dense file's, with their intervals; its compressed
size as a share of the dense file's; and how many times as fast it is as the dense file in float32
and in 8 bits, at the recipe's first workload, with the 95% interval. Minutes are those of the
whole command, by the clock and as CPU time of all its processes. The exit code is 1 where a run
did not end in `pass`. The last line is JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mfac_compress.export import machine_load

Row = dict[str, Any]

RECIPES = Path(__file__).parents[1] / "recipes"
SHIPPED = RECIPES / "models"
CHECKPOINTS = {
    "resnet20": "resnet20_cifar10_akamaster.safetensors",
    "resnet8": "resnet8_cifar10_mlperftiny.safetensors",
    "dscnn": "dscnn_kws_mlperftiny.safetensors",
    "mlp": "mlp_mnist_woodfisher.safetensors",
    "minilm": "minilm",
}
"""The file in the folder of weights, by the start of a recipe's name; of MiniLM a folder."""
COLUMNS = {
    "recipe": "recipe",
    "file": "file",
    "verdict": "verdict",
    "sparsity": "zeros",
    "metric": "metric",
    "drop": "drop",
    "size": "size",
    "float32": "over float32",
    "int8": "over int8",
    "minutes": "minutes, CPU",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="folder of checkpoints")
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--only", nargs="+", help="names of recipes, without .yaml")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/recipes"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for recipe in chosen(arguments.only):
        model = model_of(recipe, arguments.weights)
        if model is None:
            print(f"{recipe.stem}: left out, its checkpoint is not in --weights", flush=True)
            continue
        own_data = model.parent == SHIPPED
        data = [] if own_data or arguments.data is None else [f"data.folder={arguments.data}"]
        folder = arguments.output / recipe.stem
        rows += run(recipe, model, folder, [*arguments.overrides, *data])
    print_table(rows)
    print(json.dumps({"machine": asdict(machine_load()), "rows": rows}))
    sys.exit(any(row["verdict"] != "pass" for row in rows))


def chosen(names: list[str] | None) -> list[Path]:
    """The recipes by name; all of them without names."""
    if names is None:
        return sorted(RECIPES.glob("*.yaml"))
    missing = [name for name in names if not (RECIPES / f"{name}.yaml").is_file()]
    if missing:
        sys.exit(f"--only: each must name a recipe in {RECIPES}. Got {', '.join(missing)}.")
    return [RECIPES / f"{name}.yaml" for name in names]


def model_of(recipe: Path, weights: Path | None) -> Path | None:
    """The checkpoint that a recipe is for; None where it is not at hand."""
    shipped = SHIPPED / f"{recipe.stem}.safetensors"
    if shipped.exists():
        return shipped
    name = CHECKPOINTS.get(recipe.stem.split("-")[0])
    path = weights / name if weights and name else None
    return path if path and path.exists() else None


def run(recipe: Path, model: Path, folder: Path, overrides: list[str]) -> list[Row]:
    """Run a recipe; a row for each file that it made of the pruned model."""
    command = [sys.executable, "-m", "mfac_compress.pipeline", str(recipe), str(model)]
    command += ["-o", str(folder), *(f"--set={override}" for override in overrides)]
    print(" ".join(command), flush=True)
    start, cpu = time.perf_counter(), cpu_seconds()
    code = subprocess.run(command, check=False).returncode
    minutes = (time.perf_counter() - start) / 60, (cpu_seconds() - cpu) / 60
    common = {"recipe": recipe.stem, "minutes": minutes}
    if code not in (0, 1):  # 1: a gate failed, and there is a report
        return [{**common, "verdict": f"exit code {code}"}]
    report = json.loads((folder / "report.json").read_text())
    return [{**common, **row} for row in rows_of(report)]


def cpu_seconds() -> float:
    """CPU time of all processes that this one started and that are over."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rows_of(report: dict[str, Any]) -> Iterator[Row]:
    """A row for each file that was written of the pruned model."""
    for name, variant in report["variants"].items():
        if name.startswith("dense") or not variant["written"]:
            continue
        metric = variant["metric"]
        yield {
            "file": variant["file"],
            "verdict": report["verdict"],
            "sparsity": variant["sparsity"],
            "pattern": report["sparsity"]["pattern"],
            "dense": report["variants"]["dense"]["metric"]["value"],
            "metric": [metric["value"], *(metric["interval"] or ())],
            "drop": [metric["drop"], *(metric["drop_interval"] or ())],
            "size": variant["size"]["ratio"],
            "float32": speed_up(variant["latency"]),
            "int8": speed_up(variant["latency_int8"]),
        }


def speed_up(latency: list[dict[str, Any]]) -> list[float] | None:
    """Median, low and high of how many times as fast, at the first workload."""
    if not latency:
        return None
    ratio = latency[0]["ratio"]
    return [1 / ratio["median"], 1 / ratio["high"], 1 / ratio["low"]]


def print_table(rows: list[Row]) -> None:
    print("| " + " | ".join(COLUMNS.values()) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(cell(row, column) for column in COLUMNS) + " |")


def cell(row: Row, column: str) -> str:
    """Text of one cell."""
    value = row.get(column)
    if value is None:
        return ""
    text = f"{FORMATS.get(column, str)(value)}"
    return f"{text}, {row['pattern']}" if column == "sparsity" else text


def spread(values: list[float]) -> str:
    """A number with the ends of its interval, where it has one."""
    number, *ends = (f"{value:.2f}" for value in values)
    return f"{number} ({ends[0]} to {ends[1]})" if ends else number


def percent(values: list[float]) -> str:
    return spread([100 * value for value in values])


FORMATS: dict[str, Callable[[Any], str]] = {
    "sparsity": "{:.1%}".format,
    "metric": percent,
    "drop": percent,
    "size": "{:.3f}".format,
    "float32": spread,
    "int8": spread,
    "minutes": lambda minutes: ", ".join(f"{value:.0f}" for value in minutes),
}


if __name__ == "__main__":
    main()
