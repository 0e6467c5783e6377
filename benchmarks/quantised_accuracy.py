"""Metric of the models of runs in float and in 8 bits, rounded to nearest and by the solver.

    OMP_NUM_THREADS=1 python benchmarks/quantised_accuracy.py RECIPE MODEL RUN [RUN ...]

RUN is the folder of a finished run of RECIPE and MODEL: its `model.onnx`, and the `dense.onnx` of
the first, are quantised as the recipe's section `quantize` says (static if it is off), once with
`weight_update: none` and once with `obs`. The metric is that of all validation samples, once as
ONNX Runtime computes the file on this processor and once, with `--exact`, as the file says: without
VNNI, ONNX Runtime's 8-bit products saturate. `--times` adds CPU times with one thread, medians of
interleaved rounds, and files with sparse operators. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from mfac_compress.export import (
    Workload,
    kernel_library,
    machine_load,
    measure_speed,
    open_session,
    predict,
    write_model,
)
from mfac_compress.export.session import load
from mfac_compress.export.timing import time_interleaved
from mfac_compress.pipeline.inputs.load import Inputs, load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.quantize import Quantised, quantise_file

ROUNDS = 21
BATCH_SIZES = (1, 16)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs of both")
    parser.add_argument("--exact", action="store_true", help="also compute files without 8 bits")
    parser.add_argument("--times", action="store_true", help="also time the files")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    inputs = load_inputs(recipe, arguments.model)
    models = {"dense": arguments.runs[0] / "dense.onnx"}
    models |= {run.name: run / "model.onnx" for run in arguments.runs}
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for name, path in models.items()
            for row in files_of(recipe, inputs, path, Path(folder), sparse=arguments.times)
            if row.setdefault("model", name)
        ]
        for row in rows:
            session = open_session(row["path"], library=kernel_library())
            row["metric"] = metric(recipe, inputs, session)
            if arguments.exact and "operators" not in row["file"]:
                row["exact"] = metric(recipe, inputs, plain_session(row["path"]))
            print(row["model"], row["file"], row["metric"], row.get("exact", ""), flush=True)
        if arguments.times:
            add_times(recipe, inputs, rows)
    print_table(rows)
    told = [{name: value for name, value in row.items() if name != "path"} for row in rows]
    print(json.dumps({"machine": asdict(machine_load()), "rows": told}))


def files_of(
    recipe: Recipe, inputs: Inputs, plain: Path, folder: Path, *, sparse: bool
) -> Iterator[Row]:
    """Write a file in 8 bits with both roundings; yield each file with what is in it."""
    yield {"file": "float32", "path": plain}
    stem = f"{plain.parent.name}-{plain.stem}"
    section = recipe.quantize if recipe.quantize.is_on else type(recipe.quantize)(mode="static")
    for update in ("none", "obs"):
        path = folder / f"{stem}-{update}.onnx"
        found = quantise_file(
            plain,
            path,
            section=section.model_copy(update={"weight_update": update}),
            calibration=inputs.calibration,
            scratch=folder,
            step=lambda *_: None,
        )
        yield {"file": f"int8, {update}", "path": path} | of_quantised(found)
    if sparse:
        for name, source in (("float32", plain), ("int8, obs", path)):
            yield {
                "file": f"{name}, sparse operators",
                "path": with_operators(recipe, inputs, source),
            }


def of_quantised(found: Quantised) -> Row:
    """What is in 8 bits, and how far the outputs are from those in float."""
    return {
        "layers": len(found.layers),
        "int8": sum(layer.int8 for layer in found.layers),
        "solved": found.solved,
        "divergence": found.divergence,
    }


def with_operators(recipe: Recipe, inputs: Inputs, path: Path) -> Path:
    """Write a file with sparse operators where they are faster."""
    workloads = [Workload(size, threads=1) for size in BATCH_SIZES]
    found = measure_speed(path, lambda each: feeds(recipe, inputs, each.batch_size), workloads)
    if found.model is None:
        return path
    output = path.with_suffix(".sparse.onnx")
    write_model(found.model, output)
    return output


def plain_session(path: Path) -> onnxruntime.InferenceSession:
    """A session that computes what the file says, in float between its conversions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return load(str(path), options)


def feeds(recipe: Recipe, inputs: Inputs, size: int) -> dict[str, np.ndarray]:
    """Return the first samples of the validation split."""
    batches = inputs.data.validation.batches(size, indices=torch.arange(size))
    return {recipe.export.input_name: next(iter(batches))[0].numpy()}


def metric(recipe: Recipe, inputs: Inputs, session: onnxruntime.InferenceSession) -> float:
    """Return the recipe's metric on the whole validation split."""
    outputs, targets = [], []
    for x, y in inputs.data.validation.batches(recipe.validate_.batch_size):
        outputs.append(predict(session, x.numpy(), len(x)))
        targets.append(y.numpy())
    whole = np.concatenate(outputs), np.concatenate(targets)
    return float(np.mean(inputs.task.metric.evaluate(*whole)))


def add_times(recipe: Recipe, inputs: Inputs, rows: list[Row]) -> None:
    """Add times, with ratios to those of the first file."""
    sessions = [open_session(row["path"], library=kernel_library()) for row in rows]
    for size in BATCH_SIZES:
        given = feeds(recipe, inputs, size)
        openers = [lambda s=session, g=given: partial(s.run, None, g) for session in sessions]
        timed = time_interleaved(openers, rounds=1, runs=ROUNDS, warmup=2)
        times = np.array(timed.times("thread CPU"))
        for row, own in zip(rows, times, strict=True):
            row[f"ms_{size}"] = float(np.median(own))
            row[f"ratio_{size}"] = [float(q) for q in np.percentile(times[0] / own, [25, 50, 75])]


def print_table(rows: list[Row]) -> None:
    ratios = [f"ratio_{size}" for size in BATCH_SIZES if f"ratio_{size}" in rows[0]]
    exact = ["exact"] if "exact" in rows[0] else []
    head = ["model", "file", "metric", *exact, "layers in 8 bits, by the solver", "divergence"]
    print("|", " | ".join([*head, *ratios]), "|")
    print("|---" * (len(head) + len(ratios)) + "|")
    for row in rows:
        layers = f"{row['int8']} of {row['layers']}, {row['solved']}" if "int8" in row else ""
        cells = [row["model"], row["file"], f"{row['metric']:.4f}"]
        cells += [f"{row[name]:.4f}" if name in row else "" for name in exact]
        cells += [layers, f"{row['divergence']:.2g}" if layers else ""]
        cells += ["{1:.2f} ({0:.2f} to {2:.2f})".format(*row[name]) for name in ratios]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
