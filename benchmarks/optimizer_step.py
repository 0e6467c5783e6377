"""Time a step of the M-FAC optimizer against its lower bounds and the paper's algorithm.

    python benchmarks/optimizer_step.py
    python benchmarks/optimizer_step.py --window-dtype bfloat16 --device cuda
    OMP_NUM_THREADS=1 python benchmarks/optimizer_step.py --threads 1 --clock cpu
    python benchmarks/optimizer_step.py --quick

A step must read the window twice. It is compared, in one interleaved run, with

    products    only torch.mv(G, g) and torch.mv(Gᵀ, c), on a matrix of the window's size
    reads       torch.sum(G), twice: only the reads
    paper       the paper's dynamic algorithm: the matrices D and B recomputed in each step
    step 5      our step where gradients have the length 5 instead of 1 (``--lengths``)
    float64     our step with gradients so nearly parallel that float32 sums are not enough

Ratios are computed for each round and reported as median and interquartile range. A step is the
whole ``optimizer.step()``. With one thread, CPU time (``--clock cpu``) is what other programs
change least. The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mfac_compress.mfac import MFAC

DAMPING = 1e-5


class PaperAlgorithm:
    """F⁻¹g by Frantar, Kurtic, Alistarh (2021), section 3.2, row by row in the window's order.

    D_ij = gᵢᵀ F_{i−1}⁻¹ gⱼ and F_{i−1}⁻¹ gᵢ = Σ_j B_ij gⱼ, for F_i of the first i gradients.
    """

    def __init__(self, window: Tensor) -> None:
        self.window = window
        self.dots = window.double() @ window.double().mT
        self.newest = -1

    def step(self, g: Tensor) -> Tensor:
        m = len(self.window)
        self.newest = (self.newest + 1) % m
        self.window[self.newest] = g
        row = (self.window @ g).double()
        self.dots[self.newest] = row
        self.dots[:, self.newest] = row

        D = self.dots / DAMPING
        for i in range(m - 1):
            rest = D[i, i + 1 :]
            D[i + 1 :, i + 1 :].addr_(rest, rest / (m + D[i, i]), alpha=-1)
        denominators = m + D.diagonal()
        shares = D / denominators[:, None]
        B = torch.eye(m, dtype=D.dtype, device=D.device) / DAMPING
        for i in range(1, m):
            B[i, :i] = -shares[:i, i] @ B[:i, :i]
        y = row / DAMPING
        for i in range(m - 1):
            y[i + 1 :] -= shares[i, i + 1 :] * y[i]
        coefficients = (y / denominators) @ B
        return g / DAMPING - self.window.mT @ coefficients.to(g)


def main() -> None:
    options = _options()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    m, d, device = options.num_gradients, options.size, options.device
    dtype = getattr(torch, options.window_dtype)

    steps = {
        f"step {length:g}": _optimizer(m, d, dtype, device, spread=1.0, length=length)
        for length in options.lengths
    }
    steps["float64"] = _optimizer(m, d, dtype, device, spread=1e-6, length=1.0)
    G = torch.randn(m, d, device=device) / d**0.5
    window = G.to(dtype)
    g, c = window[0], torch.randn(m, device=device, dtype=dtype)
    contenders: dict[str, Callable[[], object]] = {
        **steps,
        "products": lambda: (torch.mv(window, g), torch.mv(window.mT, c)),
        "reads": lambda: (window.sum(), window.sum()),
    }
    if not options.no_paper:
        paper = PaperAlgorithm(G)
        contenders["paper"] = lambda: paper.step(G[-1].clone())

    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    seconds = _interleaved(contenders, options.rounds, device, clock)
    window_bytes = window.numel() * window.element_size()
    _print_table(seconds, window_bytes)
    _print_json(seconds, window_bytes, options)


def _optimizer(
    m: int, d: int, dtype: torch.dtype, device: str, spread: float, length: float
) -> Callable[[], None]:
    """Return a step of an optimizer with a full window, which first sets its next gradient.

    The gradients are a common one and noise of the given relative size, of about the given length.
    Setting one is timed with the step, so it only moves a pointer.
    """
    size = length / d**0.5
    weights = torch.nn.Parameter(torch.zeros(d, device=device))
    common = torch.randn(d, device=device) if spread < 1 else torch.zeros(d, device=device)
    gradients = [size * (common + spread * torch.randn(d, device=device)) for _ in range(4)]
    drawn = 0

    def step() -> None:
        nonlocal drawn
        weights.grad = gradients[drawn % len(gradients)]
        drawn += 1
        optimizer.step()

    optimizer = MFAC([weights], num_gradients=m, damping=DAMPING, window_dtype=dtype)
    step()
    fisher = optimizer.state[weights]["fisher"]
    for tile, start in _places(fisher["tiles"]):
        stop = start + tile.shape[1]
        noise = torch.randn(tile.shape, device=device)
        tile.copy_(size * (common[start:stop] + spread * noise))
    fisher["added"].fill_(m)
    optimizer.keep({weights: torch.ones(d, dtype=torch.bool)})  # forms the Gram matrix anew
    return step


def _places(tiles: list[Tensor]) -> list[tuple[Tensor, int]]:
    starts = [0]
    for tile in tiles:
        starts.append(starts[-1] + tile.shape[1])
    return list(zip(tiles, starts, strict=False))


def _interleaved(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    device: str,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, rounds):  # the first round warms up
        for name, run in contenders.items():
            _synchronize(device)
            start = clock()
            run()
            _synchronize(device)
            if turn >= 0:
                seconds[name].append(clock() - start)
    return seconds


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _ratio(above: list[float], below: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 3), "q1": round(low, 3), "q3": round(high, 3)}


def _print_table(seconds: dict[str, list[float]], window_bytes: int) -> None:
    print(f"{'':10}{'median ms':>12}{'min ms':>10}{'GB/s':>8}{'x products':>12}{'x reads':>10}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name:10}{median * 1e3:12.2f}{min(times) * 1e3:10.2f}"
            f"{2 * window_bytes / median / 1e9:8.1f}"
            f"{_ratio(times, seconds['products'])['median']:12.2f}"
            f"{_ratio(times, seconds['reads'])['median']:10.2f}"
        )


def _print_json(
    seconds: dict[str, list[float]], window_bytes: int, options: argparse.Namespace
) -> None:
    step = seconds[next(iter(seconds))]
    results = {
        "benchmark": "optimizer_step",
        "num_gradients": options.num_gradients,
        "size": options.size,
        "window_dtype": options.window_dtype,
        "window_bytes": window_bytes,
        "rounds": options.rounds,
        "median_ms": {k: round(statistics.median(v) * 1e3, 3) for k, v in seconds.items()},
        "over_products": {k: _ratio(v, seconds["products"]) for k, v in seconds.items()},
        "over_reads": {k: _ratio(v, seconds["reads"]) for k, v in seconds.items()},
        "bandwidth_share": _ratio(seconds["reads"], step),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    if "paper" in seconds:
        results["paper_over_step"] = _ratio(seconds["paper"], step)
    print(json.dumps(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-gradients", type=int, default=512)
    parser.add_argument("--size", type=int, default=270_000)
    parser.add_argument("--lengths", type=float, nargs="+", default=[1, 5], help="of the gradients")
    parser.add_argument("--window-dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-paper", action="store_true", help="leave the paper's algorithm out")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the command")
    options = parser.parse_args()
    if options.quick:
        options.num_gradients, options.size, options.rounds = 64, 20_000, 5
    return options


if __name__ == "__main__":
    main()
