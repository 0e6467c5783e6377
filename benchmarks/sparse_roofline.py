"""The share of one core's limits that each sparse kernel reaches.

    OMP_NUM_THREADS=1 python benchmarks/sparse_roofline.py

Chains of equal operators, random weights, one thread, CPU time of the thread; the core's own limits
are measured again in every round. A stored weight is multiplied with each position, so the work is
stored values x positions; each block of outputs needs one load of its positions, so the limit of
unstructured weights is the rate of loads from the L1 cache, and that of blocks is the rate of
multiply-adds. `memory` counts weights, indices, inputs and outputs once, relative to the bandwidth
of reading memory. int8 is compared with the rate of multiply-adds of bytes (VNNI): in blocks of
four outputs, and in quads of inputs. Needs a C++ compiler.
"""

import argparse
import ctypes
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mfac_compress.export import kernel_library, machine_load, open_session
from mfac_compress.export.sparse import (
    DOMAIN,
    VERSION,
    Packed,
    Rounding,
    Window,
    pack,
    pack_1x4,
    sparse_node,
)
from mfac_compress.export.timing import time_interleaved

ROUNDS = 15
CHAIN = 4
STREAMED = 1 << 25  # floats
SUMS = 12


@dataclass(frozen=True)
class Case:
    """A chain of equal operators."""

    shape: tuple[int, ...]
    weight: tuple[int, ...]
    planes: bool = False


CASES = {
    "MatMul, 1 row": Case((1, 1024), (1024, 1024)),
    "MatMul, 16 rows": Case((16, 1024), (1024, 1024)),
    "MatMul, 128 rows": Case((128, 768), (768, 768)),
    "Conv 1x1, 28 x 28": Case((1, 256, 28, 28), (256, 256, 1, 1)),
    "Conv 3x3, 28 x 28": Case((1, 128, 28, 28), (128, 128, 3, 3), planes=True),
    "Conv 3x3, 8 x 8": Case((1, 64, 8, 8), (64, 64, 3, 3), planes=True),
    "Conv 3x3, 32 x 32": Case((1, 16, 32, 32), (16, 16, 3, 3), planes=True),
}


BLOCKS = ("1", "4", "int8-4", "int8-quads")


def _weight(shape: tuple[int, ...], sparsity: float, blocks: str) -> Packed:
    rng = np.random.default_rng(0)
    if blocks == "int8-quads":
        kept = rng.random((shape[0], shape[1] // 4, 1, *shape[2:])) >= sparsity
        weight = rng.integers(-127, 128, (shape[0], shape[1] // 4, 4, *shape[2:])) * kept
        return pack_1x4(weight.reshape(shape).astype(np.int8))
    block = int(blocks.removeprefix("int8-"))
    kept = rng.random((shape[0] // block, *shape[1:])) >= sparsity
    if blocks == "int8-4":
        weight = rng.integers(-127, 128, shape) * np.repeat(kept, block, axis=0)
        return pack(weight.astype(np.int8), block=block)
    weight = rng.standard_normal(shape) * np.repeat(kept, block, axis=0)
    # Activations neither vanish nor grow along a chain.
    weight /= np.sqrt(np.prod(shape[1:]) * (1 - sparsity))
    return pack(weight.astype(np.float32), block=block)


def _chain(case: Case, weight: Packed) -> ir.Model:
    kind = ir.DataType.UINT8 if weight.values.dtype == np.int8 else ir.DataType.FLOAT
    x = ir.val("v0", kind, case.shape)
    values, nodes = [x], []
    for place in range(CHAIN):
        nodes.append(_operator(case, weight, values[-1], place))
        values += nodes[-1].outputs
    values[-1].type, values[-1].shape = x.type, x.shape
    constants = [v for node in nodes for v in node.inputs if v is not None and v.const_value]
    opsets = {"": 17, DOMAIN: VERSION}
    graph = ir.Graph(
        [x], values[-1:], nodes=nodes, initializers=constants, opset_imports=opsets, name="chain"
    )
    return ir.Model(graph, ir_version=8)


def _operator(case: Case, weight: Packed, x: ir.Value, place: int) -> ir.Node:
    name, y = f"o{place}", f"v{place + 1}"
    window = None if len(case.weight) == 2 else Window(pads=(case.weight[2] // 2,) * 4)
    if weight.values.dtype == np.int8:
        # The sums of bytes around 128 have about this spread.
        spread = 73 * 74 * np.sqrt(weight.values.size / weight.shape[0])
        scales = np.full(weight.shape[0], 40 / spread, np.float32)
        return sparse_node(name, x, y, weight, window=window, epilogue=Rounding(scales, 128, 128))
    planes = {f"v{n}" for n in range(1, CHAIN)} if case.planes else ()
    return sparse_node(name, x, y, weight, window=window, planes=planes)


class Limits:
    """One core's limits, compiled for this processor."""

    def __init__(self, folder: Path) -> None:
        source = Path(__file__).with_name("roofline.cpp")
        built = folder / "roofline.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run(["c++", *flags, str(source), "-o", str(built)], check=True)
        self._library = ctypes.CDLL(str(built))
        self._library.stream.restype = ctypes.c_float
        self._values = np.ones(STREAMED, np.float32)
        self.has_bytes = hasattr(self._library, "dots")

    def calls(self) -> list[partial]:
        """Multiply-adds, the same with loads (each 8 and 16 lanes), a read of memory, and
        multiply-adds of bytes."""
        rounds = ctypes.c_int64(100_000)
        names = ("fma_8", "fma_16", "loads_8", "loads_16")
        pointer = ctypes.c_void_p(self._values.ctypes.data)
        return [
            *(partial(getattr(self._library, name), rounds) for name in names),
            partial(self._library.stream, pointer, ctypes.c_int64(STREAMED)),
            *([partial(self._library.dots, rounds)] if self.has_bytes else []),
        ]

    @staticmethod
    def rates(times: list[float]) -> tuple[float, float, float, float]:
        """Multiply-adds and loads in lanes/s, bytes/s, and multiply-adds of bytes a second, from
        milliseconds of the calls."""
        lanes = [
            1e5 * SUMS * count / ms * 1e3 for count, ms in zip((8, 16) * 2, times, strict=False)
        ]
        dots = 1e5 * SUMS * 64 / times[5] * 1e3 if len(times) > 5 else np.nan
        return max(lanes[:2]), max(lanes[2:]), STREAMED * 4 / times[4] * 1e3, dots


def measure(case: Case, sparsity: float, blocks: str, limits: Limits, folder: Path) -> dict:
    """Time one chain together with the limits."""
    weight = _weight(case.weight, sparsity, blocks)
    is_int8 = weight.values.dtype == np.int8
    path = folder / "chain.onnx"
    ir.save(_chain(case, weight), path)
    session = open_session(path, threads=1, library=kernel_library())
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, case.shape) if is_int8 else rng.standard_normal(case.shape)
    x = x.astype(np.uint8 if is_int8 else np.float32)
    calls = [lambda: session.run(None, {"v0": x}), *limits.calls()]
    openers = [lambda call=call: call for call in calls]
    timed = time_interleaved(openers, rounds=1, runs=ROUNDS, warmup=2)
    ours, *others = timed.times("thread CPU")
    fma, loads, stream, dots = limits.rates([float(np.median(times)) for times in others])
    seconds = float(np.median(ours)) / 1e3 / CHAIN
    positions = int(np.prod(case.shape)) // case.weight[1]
    work = weight.values.size * positions
    moved = weight.values.nbytes + weight.indices.nbytes + 2 * x.nbytes
    return {
        "microseconds": seconds * 1e6,
        "gmacs": work / seconds / 1e9,
        "of_fma": work / seconds / (dots if is_int8 else fma),
        "of_loads": np.nan if is_int8 else work / weight.block.size / seconds / loads,
        "of_memory": moved / seconds / stream,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--blocks", default=",".join(BLOCKS))
    arguments = parser.parse_args()
    print("| operator | blocks | us | GMAC/s | of multiply-adds | of loads | of memory |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(Path(folder))
        for name, case in CASES.items():
            for blocks in arguments.blocks.split(","):
                row = measure(case, arguments.sparsity, blocks, limits, Path(folder))
                rows.append({"operator": name, "blocks": blocks} | row)
                print(
                    f"| {name} | {blocks} | {row['microseconds']:.1f} | {row['gmacs']:.1f} | "
                    f"{row['of_fma']:.0%} | {row['of_loads']:.0%} | {row['of_memory']:.0%} |",
                    flush=True,
                )
    print(
        json.dumps(
            {"machine": asdict(machine_load()), "sparsity": arguments.sparsity, "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
