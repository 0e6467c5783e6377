"""Metric and speed of a run's pruned model, also quantised, compared to the dense float32 file.

    OMP_NUM_THREADS=1 python benchmarks/quantised_accuracy.py RECIPE MODEL RUN

RUN is the folder of a finished run of RECIPE and MODEL. Its `model.onnx` is quantised by ONNX
Runtime's own tools (QDQ, uint8 activations, int8 weights per channel) with samples of the
calibration split, and rewritten with the sparse operators. The metric is that of all validation
samples; times are CPU time with one thread, medians of interleaved rounds. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from mfac_compress.export import (
    Workload,
    kernel_library,
    machine_load,
    measure_speed,
    open_session,
    predict,
    write_model,
)
from mfac_compress.export.timing import time_interleaved
from mfac_compress.pipeline.inputs.load import Inputs, load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import Recipe

ROUNDS = 21
BATCH_SIZES = (1, 16)
CALIBRATION_BATCHES, CALIBRATION_BATCH = 16, 32


class _Samples(CalibrationDataReader):
    """Return the first samples of the calibration split."""

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        rows = torch.arange(CALIBRATION_BATCHES * CALIBRATION_BATCH)
        batches = inputs.data.calibration.batches(CALIBRATION_BATCH, indices=rows)
        self._batches = (inputs.numpy() for inputs, _ in batches)
        self._name = recipe.export.input_name

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def quantised_files(recipe: Recipe, inputs: Inputs, plain: Path, folder: Path) -> tuple[Path, Path]:
    """Quantise a file, and write it with sparse operators where they are faster."""
    dense, sparse = folder / "int8.onnx", folder / "int8.sparse.onnx"
    quantize_static(
        plain,
        dense,
        _Samples(recipe, inputs),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    workloads = [Workload(size, threads=1) for size in BATCH_SIZES]
    found = measure_speed(dense, lambda each: feeds(recipe, inputs, each.batch_size), workloads)
    if found.model is None:
        raise SystemExit(f"no sparse file: {found.reason}")
    write_model(found.model, sparse)
    return dense, sparse


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
    return float(np.mean(inputs.task.evaluate(np.concatenate(outputs), np.concatenate(targets))))


def measure(
    recipe: Recipe, inputs: Inputs, sessions: Sequence[onnxruntime.InferenceSession]
) -> list[dict[str, Any]]:
    """Return metric and times of each session, with ratios to the times of the first."""
    rows: list[dict[str, Any]] = [
        {"metric": metric(recipe, inputs, session)} for session in sessions
    ]
    for size in BATCH_SIZES:
        given = feeds(recipe, inputs, size)
        openers = [lambda s=session, g=given: partial(s.run, None, g) for session in sessions]
        timed = time_interleaved(openers, rounds=1, runs=ROUNDS, warmup=2)
        times = np.array(timed.times("thread CPU"))
        for row, own in zip(rows, times, strict=True):
            row[f"ms_{size}"] = float(np.median(own))
            row[f"ratio_{size}"] = [float(q) for q in np.percentile(times[0] / own, [25, 50, 75])]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("run", type=Path, help="folder of a finished run of both")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    inputs = load_inputs(recipe, arguments.model)
    run = arguments.run
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = quantised_files(recipe, inputs, run / "model.onnx", Path(folder))
        files = {
            "dense, float32": run / "dense.onnx",
            "sparse operators, float32": run / "model.sparse.onnx",
            "int8, stock ONNX Runtime": dense,
            "int8, sparse operators": sparse,
        }
        library = kernel_library()
        sessions = [open_session(path, threads=1, library=library) for path in files.values()]
        rows = measure(recipe, inputs, sessions)
    print("| file | metric | " + " | ".join(f"batch {size}" for size in BATCH_SIZES) + " |")
    print("|---|---|---|---|")
    for name, row in zip(files, rows, strict=True):
        ratios = ("{1:.2f} ({0:.2f} to {2:.2f})".format(*row[f"ratio_{n}"]) for n in BATCH_SIZES)
        print(f"| {name} | {row['metric']:.4f} | {' | '.join(ratios)} |")
    named = [{"file": name} | row for name, row in zip(files, rows, strict=True)]
    print(json.dumps({"machine": asdict(machine_load()), "rows": named}))


if __name__ == "__main__":
    main()
