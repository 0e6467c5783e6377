"""Time the inverse Fisher and its diagonal against the paper's recursion and the machine's GEMM.

    python benchmarks/static_inverse.py [--quick] [--device cuda] [--threads 2]

Variants are interleaved, so that load on the machine affects all of them. Medians are printed; the
GEMM share compares the operations needed (2 d m^2 for the full matrix; d B m + 2/3 d B^2 for
blocks, exploiting symmetry) with float32 products of 2048 x 2048. `cpu` ratios are of CPU time,
which load changes less. Peak memory is that of a separate process, from `VmHWM`.

The recursion is section 3.1 of Frantar, Kurtic, Alistarh (2021), M-FAC, equations 2 to 5:
    v_i = F_{i-1}^-1 g_i = g_i / damping - sum_{j<i} v_j (v_j^T g_i) / (m + g_j^T v_j)
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mfac_compress.mfac import fisher_of, invert

DAMPING = 1e-5


@dataclass(frozen=True)
class Case:
    """One size; ``block`` None for the full matrix, ``recursion`` whether to run the paper's."""

    d: int
    m: int
    block: int | None
    recursion: bool

    @property
    def name(self) -> str:
        return f"{'full' if self.block is None else f'B={self.block}'} d={self.d} m={self.m}"

    @property
    def flops(self) -> float:
        if self.block is None:
            return 2 * self.d * self.m**2
        return self.d * self.block * (self.m + 2 * self.block / 3)


CASES = [
    Case(270_000, 512, None, True),
    Case(270_000, 1024, None, False),
    Case(131_072, 512, 128, True),
    Case(131_072, 1024, 128, True),
]
QUICK = [Case(40_000, 256, None, True), Case(16_384, 256, 64, True)]


def recursion_diagonal(gradients: Tensor, block: int | None, damping: float) -> Tensor:
    """Diagonal of F^-1 by the paper's row-by-row recursion, batched over blocks."""
    m, d = gradients.shape
    G = gradients.view(m, -1, block or d).transpose(0, 1).contiguous()  # [blocks, m, B]
    V = torch.empty_like(G)
    scale = torch.empty(G.shape[:2], dtype=G.dtype, device=G.device)
    diagonal = torch.full_like(G[:, 0], 1 / damping)
    for i in range(m):
        g = G[:, i]
        inner = torch.bmm(V[:, :i], g.unsqueeze(2)).squeeze(2) / scale[:, :i]
        V[:, i] = g / damping - torch.bmm(inner.unsqueeze(1), V[:, :i]).squeeze(1)
        scale[:, i] = m + (g * V[:, i]).sum(dim=1)
        diagonal -= V[:, i].square() / scale[:, i : i + 1]
    return diagonal.flatten()


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock, processor = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock, time.process_time() - processor


def run_case(case: Case, device: torch.device, repeats: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(case.m, case.d, generator=generator).to(device)
    square = torch.randn(2048, 2048, device=device)
    product = torch.empty_like(square)
    results: dict[str, Tensor] = {}

    def gemm() -> None:
        torch.mm(square, square, out=product)

    def ours() -> None:
        results["ours"] = invert(fisher_of(G, case.block), DAMPING).diagonal()

    def recursion() -> None:
        results["recursion"] = recursion_diagonal(G, case.block, DAMPING)

    variants = {"gemm": gemm, "ours": ours} | ({"recursion": recursion} if case.recursion else {})
    gemm()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for repeat in range(repeats):
        for name, work in variants.items():
            # The recursion takes most of the time and varies the least.
            for _ in range(3 if name != "recursion" else int(repeat < 2)):
                times[name].append(timed(work, device))
    clock, processor = (
        {name: statistics.median(pair[kind] for pair in pairs) for name, pairs in times.items()}
        for kind in (0, 1)
    )
    row = {
        "case": case.name,
        "ours_s": clock["ours"],
        "gemm_gflops": 2 * 2048**3 / clock["gemm"] / 1e9,
        "gemm_share": case.flops * clock["gemm"] / (clock["ours"] * 2 * 2048**3),
        "gemm_share_cpu": case.flops * processor["gemm"] / (processor["ours"] * 2 * 2048**3),
    }
    if case.recursion:
        exact = results["ours"].double()
        row |= {
            "recursion_s": clock["recursion"],
            "ratio": clock["recursion"] / clock["ours"],
            "ratio_cpu": processor["recursion"] / processor["ours"],
            "largest_difference": ((results["recursion"] - exact) / exact).abs().max().item(),
        }
    return row


def peak_memory(case: Case, dtype: str) -> dict:
    """Return the memory of a full build beyond an idle process, as a multiple of the window."""
    child = [sys.executable, __file__, "--child", str(case.d), str(case.m), dtype]
    answer = subprocess.run(child, check=True, capture_output=True, text=True, timeout=900)
    return {
        "case": f"full d={case.d} m={case.m} {dtype}",
        **json.loads(answer.stdout.splitlines()[-1]),
    }


def measure_memory(d: int, m: int, dtype: str) -> None:
    """The child's part of :func:`peak_memory`."""
    invert(fisher_of(torch.randn(m, 2048)), DAMPING)  # libraries and their threads' buffers
    idle = _memory("VmRSS")
    G = torch.empty(m, d, dtype=getattr(torch, dtype))
    for row in G:
        row.copy_(torch.randn(d))
    invert(fisher_of(G), DAMPING)
    window = G.nbytes
    times = (_memory("VmHWM") - idle) / window
    print(json.dumps({"window_mb": window / 1e6, "times_window": times}))


def _memory(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def show(rows: list[dict]) -> None:
    for row in rows:
        columns = [
            f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, int | float)
        ]
        print(f"{row['case']:28} " + "  ".join(columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="processor threads; torch's choice by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="sizes whose name contains this")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.child:
        d, m, dtype = arguments.child
        measure_memory(int(d), int(m), dtype)
        return
    device = torch.device(arguments.device)
    cases = [c for c in (QUICK if arguments.quick else CASES) if arguments.only in c.name]
    timings, memory = [], []
    for case in cases:
        timings.append(run_case(case, device, arguments.repeats))
        show(timings[-1:])
    if device.type == "cpu" and os.path.exists("/proc/self/status"):
        memory = [peak_memory(cases[0], dtype) for dtype in ("float32", "bfloat16")]
        show(memory)
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }
    sizes = [asdict(case) for case in cases]
    print(json.dumps({"timings": timings, "memory": memory, "machine": machine, "sizes": sizes}))


if __name__ == "__main__":
    main()
