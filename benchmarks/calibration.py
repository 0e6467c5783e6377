"""Samples per second of calibration, by loop and by vmap, for several samples per gradient.

    python benchmarks/calibration.py RECIPE MODEL [--samples 1 2 4 8 16] [--device cuda]

Both methods take the gradients of the same samples, interleaved; medians and interquartile ranges
over the rounds are printed. ``forward`` is one forward and backward pass over the same samples in
batches of 64, an upper bound for gradients of single samples. The last line is JSON.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.gradients import GradientSource, fastest_method
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe

SAMPLES = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    arguments = parser.parse_args()
    overrides = [f"run.device={arguments.device}", *arguments.overrides]
    inputs = load_inputs(load_recipe(arguments.recipe, overrides), arguments.model)
    module = inputs.model.module
    source = GradientSource(module, inputs.task.unchecked_loss, inputs.targets.layout)
    rows = [
        measure(inputs.calibration, source, count, arguments.rounds) for count in arguments.samples
    ]
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    print(json.dumps({**machine, "device": str(inputs.device), "rows": rows}))


def measure(calibration, source, samples_per_gradient: int, rounds: int) -> dict[str, object]:
    """Return samples per second of both methods, and which one a run would choose."""

    def batches(size: int) -> list[Batch]:
        return list(calibration.batches(size, range(SAMPLES)))

    given = batches(samples_per_gradient)
    seconds: dict[str, list[float]] = {"loop": [], "vmap": [], "forward": []}
    for _ in range(rounds + 1):
        for method in ("loop", "vmap"):
            seconds[method].append(timed(lambda m=method: list(source.rows(given, m))))
        seconds["forward"].append(timed(lambda: list(source.rows(batches(64), "loop"))))
    rates = {name: [SAMPLES / s for s in values[1:]] for name, values in seconds.items()}
    row = {name: round(statistics.median(values)) for name, values in rates.items()}
    spread = {
        f"{name}_iqr": [round(q) for q in statistics.quantiles(values, n=4)[::2]]
        for name, values in rates.items()
    }
    chosen = fastest_method(source, given[: max(1, 32 // samples_per_gradient)])
    print(f"{samples_per_gradient:>3} samples a gradient: {row}, chosen: {chosen}", flush=True)
    return {"samples_per_gradient": samples_per_gradient, **row, **spread, "chosen": chosen}


def timed(work) -> float:
    """Return the seconds of a call, including the device's work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
