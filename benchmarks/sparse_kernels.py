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
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import Tensor, nn

from mfac_compress.export import (
    Workload,
    export_onnx,
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


class BertBlock(nn.Module):
    """A transformer layer of matrix products: d 384, 6 heads, ffn 1536."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(384, 384) for _ in range(4))
        self.up, self.down = nn.Linear(384, 1536), nn.Linear(1536, 384)
        self.norm1, self.norm2 = nn.LayerNorm(384), nn.LayerNorm(384)

    def forward(self, x: Tensor) -> Tensor:
        heads = [
            layer(x).unflatten(-1, (6, 64)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        weights = (heads[0] @ heads[1].transpose(2, 3) / 8).softmax(-1)
        attended = (weights @ heads[2]).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(attended))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


def _convolutions(kernel: int) -> nn.Module:
    """Six convolutions of 128 to 256 channels."""
    channels = (128, 128, 128, 256, 256, 256, 256)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers)


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


class _Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise convolution, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        hidden = inputs * widening
        widen = [nn.Conv2d(inputs, hidden, 1), nn.ReLU6()] if widening > 1 else []
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden)
        self.layers = nn.Sequential(*widen, depthwise, nn.ReLU6(), nn.Conv2d(hidden, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
             (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
"""Expansion, outputs, repeats and first stride of each stage (Sandler et al. 2018, table 2)."""


def _mobilenet() -> nn.Module:
    layers, channels = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()], 32
    for widening, outputs, repeats, first in MOBILENET:
        for place in range(repeats):
            layers.append(_Inverted(channels, outputs, 1 if place else first, widening))
            channels = outputs
    head = [nn.Conv2d(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(1280, 1000))


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
    "bert": Case(lambda: nn.Sequential(BertBlock(), BertBlock()), (128, 384)),
    "mlp-16": Case(_mlp, (784,), batch=16),
    "conv3x3": Case(lambda: _convolutions(3), (128, 28, 28)),
    "conv1x1": Case(lambda: _convolutions(1), (128, 28, 28)),
    "mobilenet": Case(_mobilenet, (3, 224, 224)),
}
CASES = _FLOAT | {f"{name}-int8": replace(case, int8=True) for name, case in _FLOAT.items()}


def prune_inputs(model: nn.Module, sparsity: float, block: int) -> None:
    """Remove the smallest blocks of ``block`` inputs of every layer with more than three."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[1] > 3:
            weight = layer.weight.detach()
            blocks = weight.view(len(weight), -1, block, weight[0, 0].numel())
            sizes = blocks.square().sum(2, keepdim=True)
            keep = sizes > sizes.flatten().kthvalue(round(sparsity * sizes.numel())).values
            blocks.mul_(keep)


def prune_outputs(model: nn.Module, sparsity: float, block: int) -> None:
    """Remove the smallest blocks of ``block`` outputs of every layer, except convolutions of images
    and depthwise ones, which have few inputs."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[1] > 3:
            weight = layer.weight.detach().flatten(1)
            spare = -len(weight) % block
            padded = nn.functional.pad(weight, (0, 0, 0, spare)).unflatten(0, (-1, block))
            sizes = padded.square().sum(1)
            keep = sizes > sizes.flatten().kthvalue(round(sparsity * sizes.numel())).values
            mask = keep[:, None].expand_as(padded).flatten(0, 1)[: len(weight)]
            weight.mul_(mask)


class _Calibration(CalibrationDataReader):
    """Return a few batches of random inputs."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(1)
        self._batches = iter([torch.randn(shape, generator=generator) for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch.numpy()}


def export(model: nn.Module, example: Tensor, path: Path, int8: bool) -> None:
    """Write a file, quantised or not."""
    export_onnx(model, example, path)
    if int8:
        quantize_static(
            path,
            path,
            _Calibration(tuple(example.shape)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


def measure(name: str, sparsity: float, block: int, axis: str, threads: int, folder: Path) -> dict:
    """Export, rewrite and time one model."""
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build().eval()
    example = torch.randn(case.batch, *case.shape)
    few = example[:2] if case.batch > 1 else example
    parts = ("float", "dense", "plain", "sparse")
    float32, dense, plain, sparse = (folder / f"{part}.onnx" for part in parts)
    if case.int8:
        export(model, few, float32, int8=False)
    export(model, few, dense, case.int8)
    (prune_inputs if axis == "inputs" else prune_outputs)(model, sparsity, block)
    export(model, few, plain, case.int8)

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
        open_session(dense, threads=threads),
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
