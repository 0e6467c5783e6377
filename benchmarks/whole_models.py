"""Speed-up of whole sparse models, in float32 and int8, over dense float32 in ONNX Runtime.

    OMP_NUM_THREADS=1 python benchmarks/whole_models.py --models resnet50 --sparsities 0.9

Networks of published shapes, batch 1, with random weights; masks follow their magnitude. The
rewriter chooses the layers to replace; where it finds nothing faster, the plain file is timed.
Ratio = dense float32 file in stock ONNX Runtime / this file, median of the rounds with its 95%
interval. All files of a model are timed in one interleaved run; with one thread of the thread's CPU
time, which other programs do not lengthen. int8 is ONNX Runtime's static quantisation (QDQ, uint8
activations, int8 weights per channel). The last line is JSON.
"""

import argparse
import copy
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from networks import bert_base, mobilenetv2, resnet50, vit_small
from sparse_files import PATTERNS, export
from torch import nn

from mfac_compress.export import (
    Workload,
    kernel_library,
    machine_load,
    measure_speed,
    median_interval,
    open_session,
    write_model,
)
from mfac_compress.export.timing import Call, clock_for, time_interleaved

_L1D = Path("/sys/devices/system/cpu/cpu0/cache/index0/size")
_CALIBRATION = 4  # batches
PRECISIONS = ("float32", "int8")


@dataclass(frozen=True)
class Network:
    """A network and what it takes.

    Attributes:
        build: Returns it with random weights.
        shape: Shape of one input, without the batch.
        vocabulary: Number of tokens; None if the inputs are numbers.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int | None = None

    def inputs(self) -> np.ndarray:
        """Draw an input of batch 1."""
        if self.vocabulary is not None:
            return torch.randint(self.vocabulary, (1, *self.shape)).numpy()
        return torch.randn(1, *self.shape).numpy()


NETWORKS = {
    "resnet50": Network(resnet50, (3, 224, 224)),
    "bert-base": Network(bert_base, (128,), vocabulary=30522),
    "mobilenetv2": Network(mobilenetv2, (3, 224, 224)),
    "vit-small": Network(vit_small, (3, 224, 224)),
}


@dataclass(frozen=True)
class File:
    """A file to time."""

    sparsity: float
    pattern: str
    precision: str
    path: Path
    library: Path | None = None
    """Library of the sparse operators; None if there are none in it."""

    def opener(self, threads: int, feeds: dict[str, np.ndarray]) -> Callable[[], Call]:
        """Return what opens it and returns a call of it."""
        # Not sparse_session: its workers spin after a call and would slow the other sessions.
        return lambda: partial(
            open_session(self.path, threads=threads, library=self.library).run, None, feeds
        )


def write_files(
    network: Network,
    cases: Sequence[tuple[float, str]],
    precisions: Sequence[str],
    threads: int,
    folder: Path,
) -> Iterator[File]:
    """Write the files of a network: the dense ones first, float32 before int8.

    Args:
        network: The network.
        cases: Sparsities, each with the name of a pattern.
        precisions: Those of the files besides the dense float32 one.
        threads: Threads with which the rewriter times layers.
        folder: Where to write.
    """
    torch.manual_seed(0)
    dense = network.build().eval()
    batches = [network.inputs() for _ in range(_CALIBRATION)]
    wanted = {"float32", *precisions}
    for precision, path in _export(dense, batches, wanted, folder / "dense"):
        yield File(0.0, "dense", precision, path)
    for sparsity, pattern in cases:
        model = copy.deepcopy(dense)
        PATTERNS[pattern](model, sparsity)
        plain = _export(model, batches, precisions, folder / f"{pattern}-{sparsity}")
        for precision, path in plain:
            yield _accelerated(File(sparsity, pattern, precision, path), batches[0], threads)


def _accelerated(plain: File, example: np.ndarray, threads: int) -> File:
    """Return a file with sparse operators where they are faster; the plain one if none is."""
    workloads = [Workload(1, threads)]
    model = measure_speed(plain.path, lambda _: {"input": example}, workloads).model
    if model is None:
        return plain
    path = plain.path.with_suffix(".sparse.onnx")
    write_model(model, path)
    return replace(plain, path=path, library=kernel_library())


def _export(
    model: nn.Module, batches: Sequence[np.ndarray], precisions: Sequence[str], stem: Path
) -> list[tuple[str, Path]]:
    """Write a model in some precisions; return each with its file."""
    paths = {precision: Path(f"{stem}-{precision}.onnx") for precision in PRECISIONS}
    export(model, paths["float32"], batches, paths["int8"] if "int8" in precisions else None)
    return [(precision, paths[precision]) for precision in PRECISIONS if precision in precisions]


def measure(
    name: str,
    network: Network,
    cases: Sequence[tuple[float, str]],
    precisions: Sequence[str],
    *,
    threads: int,
    rounds: int,
) -> list[dict]:
    """Write and time the files of a network.

    Returns:
        A row for each file except the dense float32 one: model, sparsity, pattern, precision, ratio
        with its interval (low, high), and milliseconds of both files.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = list(write_files(network, cases, precisions, threads, Path(folder)))
        feeds = {"input": network.inputs()}
        openers = [file.opener(threads, feeds) for file in files]
        timed = time_interleaved(openers, rounds=1, runs=rounds, warmup=2)
    dense, *others = timed.times(clock_for(threads))
    rows = []
    for file, times in zip(files[1:], others, strict=True):
        ratio = median_interval(np.divide(dense, times))
        rows.append(
            {
                "model": name,
                "sparsity": file.sparsity,
                "pattern": file.pattern,
                "precision": file.precision,
                "ratio": round(ratio.median, 3),
                "low": round(ratio.low, 3),
                "high": round(ratio.high, 3),
                "ms": round(float(np.median(times)), 3),
                "dense_ms": round(float(np.median(dense)), 3),
            }
        )
    return rows


def processor() -> dict[str, str | None]:
    """Return the name of the processor and the size of its first data cache, where known."""
    l1d = _L1D.read_text(encoding="ascii").strip() if _L1D.exists() else None
    return {"name": machine_load().cpu, "l1d": l1d}


def _row(row: dict) -> str:
    return (
        f"| {row['model']} | {row['sparsity']:.0%} | {row['pattern']} | {row['precision']} | "
        f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['ms']:.2f} |"
    )


def _listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a type of argument: names from a list, separated by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"each must be one of {', '.join(known)}. Got {', '.join(unknown)}."
            )
        return names

    return parse


def _sparsities(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if not all(0 < number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"each must lie between 0 and 1. Got {text}.")
    return numbers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = {"models": list(NETWORKS), "patterns": ["unstructured", "outputs-4"]}
    parser.add_argument("--models", type=_listed(list(NETWORKS)), default=default["models"])
    parser.add_argument("--sparsities", type=_sparsities, default=[0.8, 0.9])
    parser.add_argument("--patterns", type=_listed(list(PATTERNS)), default=default["patterns"])
    parser.add_argument("--precisions", type=_listed(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21, help="at least 6")
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.rounds < 6:
        parser.error("threads must be at least 1 and rounds at least 6.")
    return arguments


def main() -> None:
    arguments = _arguments()
    print("| model | sparsity | pattern | precision | ratio (95% interval) | ms |")
    print("|---|---|---|---|---|---|")
    rows = []
    for name in arguments.models:
        cases = list(itertools.product(arguments.sparsities, arguments.patterns))
        found = measure(
            name,
            NETWORKS[name],
            cases,
            arguments.precisions,
            threads=arguments.threads,
            rounds=arguments.rounds,
        )
        print("\n".join(map(_row, found)), flush=True)
        rows += found
    print(
        json.dumps(
            {
                "processor": processor(),
                "onnxruntime": onnxruntime.__version__,
                "threads": arguments.threads,
                "machine": asdict(machine_load()),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
