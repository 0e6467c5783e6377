"""Speed-up of sparse models with the sparse kernels over dense models in ONNX Runtime.

    python benchmarks/sparse_kernels.py --models resnet20,mlp --sparsities 0.8,0.9,0.95

Weights are random, masks follow their magnitude, and the rewriter chooses the layers to replace.
Ratio = dense file in stock ONNX Runtime / file with sparse operators and the library, median of
interleaved rounds; with one thread of the thread's CPU time, which other programs do not lengthen.

Models whose names end with -int8 are quantised by ONNX Runtime (QDQ, uint8 activations, int8
weights per channel), as is the dense file; the last column compares with the dense float32 file.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from networks import PostNormLayer, mobilenetv2
from sparse_files import export, prune_inputs, prune_outputs
from torch import nn

from mfac_compress.export import (
    Workload,
    kernel_library,
    machine_load,
    measure_speed,
    open_session,
    write_model,
)
from mfac_compress.export.timing import clock_for, time_interleaved

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes" / "models"))
from resnet_cifar import resnet20

ROUNDS = 21


def _convolutions(kernel: int) -> nn.Module:
    """Six convolutions of 128 to 256 channels."""
    channels = (128, 128, 128, 256, 256, 256, 256)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers)


def _transformer() -> nn.Module:
    """Two transformer layers: d 384, 6 heads, ffn 1536."""
    return nn.Sequential(PostNormLayer(384, 6), PostNormLayer(384, 6))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int = 1
    int8: bool = False


_FLOAT = {
    "resnet20": Case(resnet20, (3, 32, 32)),
    "resnet20-16": Case(resnet20, (3, 32, 32), batch=16),
    "bert": Case(_transformer, (128, 384)),
    "mlp-16": Case(_mlp, (784,), batch=16),
    "conv3x3": Case(lambda: _convolutions(3), (128, 28, 28)),
    "conv1x1": Case(lambda: _convolutions(1), (128, 28, 28)),
    "mobilenet": Case(mobilenetv2, (3, 224, 224)),
}
CASES = _FLOAT | {f"{name}-int8": replace(case, int8=True) for name, case in _FLOAT.items()}


def measure(name: str, sparsity: float, block: int, axis: str, threads: int, folder: Path) -> dict:
    """Export, rewrite and time one model."""
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build().eval()
    example = torch.randn(case.batch, *case.shape)
    few = example[:2] if case.batch > 1 else example
    batches = [few.numpy(), *(torch.randn(few.shape).numpy() for _ in range(3))]
    parts = ("float", "dense", "plain", "sparse")
    float32, dense, plain, sparse = (folder / f"{part}.onnx" for part in parts)
    export(model, float32, batches, dense if case.int8 else None)
    (prune_inputs if axis == "inputs" else prune_outputs)(model, sparsity, block)
    export(model, plain, batches, plain if case.int8 else None)

    def feeds_of(workload: Workload) -> dict[str, np.ndarray]:
        return {"input": torch.randn(workload.batch_size, *case.shape).numpy()}

    workload = Workload(case.batch, threads)
    found = measure_speed(plain, feeds_of, [workload])
    row = {"model": name, "sparsity": sparsity, "block": block, "axis": axis, "threads": threads}
    replaced = sum(layer.block is not None for layer in found.layers)
    row["replaced"] = f"{replaced} of {len(found.layers)}"
    if found.model is None:
        ratios = {"ratio": 1.0, "low": 1.0, "high": 1.0, "float_ratio": float("nan")}
        return row | ratios | {"reason": found.reason}
    write_model(found.model, sparse)
    feeds = feeds_of(workload)
    sessions = [
        open_session(dense if case.int8 else float32, threads=threads),
        # Not sparse_session: its workers spin after a call and would slow the other session.
        open_session(sparse, threads=threads, library=kernel_library()),
    ]
    if case.int8:
        sessions.append(open_session(float32, threads=threads))
    ours = sessions[1].run(None, feeds)[0]
    error = float(np.abs(ours - open_session(plain).run(None, feeds)[0]).max())
    openers = [lambda session=session: partial(session.run, None, feeds) for session in sessions]
    # Each session's memory evicts the others' from the caches: no more sessions than needed.
    timed = time_interleaved(openers, rounds=1, runs=ROUNDS, warmup=2)
    before, after, *others = timed.times(clock_for(threads))
    in_float32 = others[0] if others else before
    ratios = np.array(before) / np.array(after)
    low, ratio, high = np.percentile(ratios, [25, 50, 75])
    return row | {
        "dense_ms": float(np.median(before)),
        "sparse_ms": float(np.median(after)),
        "float_ms": float(np.median(in_float32)),
        "float_ratio": float(np.median(np.array(in_float32) / np.array(after))),
        "ratio": float(ratio),
        "low": float(low),
        "high": float(high),
        "error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--sparsities", default="0.8,0.9,0.95")
    parser.add_argument("--blocks", default="1,4", help="1: unstructured")
    parser.add_argument("--axis", choices=["outputs", "inputs"], default="outputs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(
        "| model | block | sparsity | dense ms | sparse ms | ratio (quartiles) | replaced "
        "| float32 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models.split(","):
            for block in map(int, arguments.blocks.split(",")):
                for sparsity in map(float, arguments.sparsities.split(",")):
                    row = measure(
                        name, sparsity, block, arguments.axis, arguments.threads, Path(folder)
                    )
                    rows.append(row)
                    print(
                        f"| {name} | {block} | {sparsity:.0%} | {row.get('dense_ms', 0):.3f} | "
                        f"{row.get('sparse_ms', 0):.3f} | {row['ratio']:.2f} ({row['low']:.2f} to "
                        f"{row['high']:.2f}) | {row['replaced']} | {row['float_ratio']:.2f} |",
                        flush=True,
                    )
    print(json.dumps({"machine": asdict(machine_load()), "rows": rows}))


if __name__ == "__main__":
    main()
