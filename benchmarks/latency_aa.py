"""How often a file is called faster than itself while another process is running.

    python benchmarks/latency_aa.py --comparisons 200 --busy 1 --copies 2

Compares an ONNX file repeatedly with copies of itself, all of them interleaved, as a run does; with
one copy, as `mfac-compress speed` does. The share of copies that is called faster must be at most
2.5%, the share of intervals without 1 at most 5%. The last line is JSON.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mfac_compress.export import Variant, Workload, compare_latency, export_onnx, machine_load
from mfac_compress.pipeline.recipe.schema import LatencySection

BUSY = "while True: sum(i * i for i in range(10_000))"


@contextmanager
def process(*command: str) -> Iterator[None]:
    """Run a command in the background during the ``with`` block."""
    running = subprocess.Popen(command)
    try:
        yield
    finally:
        running.kill()
        running.wait()


def net() -> nn.Module:
    """Return a few small convolutions and a matrix product."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 16 * 16, 10),
    )  # fmt: skip


def main() -> None:
    defaults = LatencySection()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--copies", type=int, default=2, help="files compared with the first")
    parser.add_argument("--busy", type=int, default=1, help="processes that never rest")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=defaults.runs, help="pairs of a comparison")
    arguments = parser.parse_args()
    workload = Workload(arguments.batch, arguments.threads)
    inputs = {"input": np.random.default_rng(0).random((arguments.batch, 3, 16, 16), np.float32)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        names = ["dense", *(f"copy {number}" for number in range(arguments.copies))]
        dense, *copies = (Variant(name, Path(folder, f"{name}.onnx")) for name in names)
        export_onnx(net().eval(), torch.zeros(2, 3, 16, 16), dense.path)
        for copy in copies:
            shutil.copyfile(dense.path, copy.path)
        for _ in range(arguments.busy):
            stack.enter_context(process(sys.executable, "-c", BUSY))
        found = []
        for number in range(arguments.comparisons):
            compared = compare_latency(
                dense, copies, lambda _: inputs, [workload],
                warmup=defaults.warmup, runs=arguments.runs,
            )  # fmt: skip
            found += [comparison for (comparison,) in compared.values()]
            print(f"{number + 1}: {'; '.join(c.verdict for (c,) in compared.values())}", flush=True)
    ratios = [comparison.ratio for comparison in found]
    counts = Counter(comparison.finding for comparison in found)
    widths = [(ratio.high - ratio.low) / 2 for ratio in ratios]
    print(
        json.dumps(
            {
                **vars(arguments),
                "faster": counts["faster"],
                "slower": counts["slower"],
                "too_noisy": counts["too noisy to judge"],
                "below_1": sum(ratio.high < 1 for ratio in ratios),
                "above_1": sum(ratio.low > 1 for ratio in ratios),
                "median_ms": float(
                    np.median([c.reference_time.by(c.clock).median_ms for c in found])
                ),
                "half_width_median": float(np.median(widths)),
                "half_width_largest": max(widths),
                **asdict(machine_load()),
            }
        )
    )


if __name__ == "__main__":
    main()
