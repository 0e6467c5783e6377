"""Memory, traffic and time of each process, by the formulas of docs/scaling.md.

    python benchmarks/scaling.py [--gemm 94] [--link 1.0] [--model NAME:WEIGHTS:GMACS ...]

The defaults were measured by the other benchmarks on one core of the machine of docs/benchmarks.md;
give those of your own machines. Prints a table and a last line of JSON.
"""

import argparse
import json
from dataclasses import asdict, dataclass

MODELS = ["ResNet-50 (224 x 224):25.5e6:4.1", "BERT-base (128 tokens):85e6:11.2"]


@dataclass(frozen=True)
class Machine:
    """The speed of one process.

    Attributes:
        gemm: Float32 products of 2048 x 2048, in GFLOP/s.
        gradient_share: Share of it that forward and backward passes reach.
        window_share: Share of it that Gram matrix and diagonal reach.
        block_share: Share of it that building and inverting blocks reaches.
        link: Bandwidth to other processes, in GB/s.
    """

    gemm: float
    gradient_share: float
    window_share: float
    block_share: float
    link: float


@dataclass(frozen=True)
class Work:
    """One step: m gradients of k samples each, and the inverse of their Fisher.

    Attributes:
        weights: d, all of them to be pruned.
        macs: Multiplications of a forward pass of one sample.
        m: Number of gradients.
        k: Samples of a gradient.
        B: Columns of a block; None for the full matrix.
    """

    weights: float
    macs: float
    m: int
    k: int
    B: int | None

    def fisher_bytes(self, N: int) -> float:
        """Return the bytes of the window or packed sums on each of N processes."""
        if self.B is None:
            return 4 * self.m * self.weights / N + 2 * 8 * self.m**2
        return 8 * self.weights * (self.B + 2) * (self.B + 1) / (2 * self.B) / N

    def sent_bytes(self, N: int) -> float:
        """Return the bytes each process sends: gradients, Gram matrices, saliencies, updates."""
        gradients = 4 * self.m / N * self.weights
        gram = 2 * 8 * self.m**2 if self.B is None else 0
        return (N - 1) / N * (gradients + gram + 2 * 4 * self.weights / N)

    def seconds(self, N: int, machine: Machine) -> dict[str, float]:
        """Return the seconds of gradients, inverse and traffic, not overlapped."""
        gradient_flops = 6 * self.macs * self.m * self.k / N
        if self.B is None:
            inverse = (2 * self.weights * self.m**2 / N) / machine.window_share
        else:
            inverse = self.weights * self.B * (self.m + 2 * self.B / 3) / N / machine.block_share
        return {
            "gradients": gradient_flops / machine.gradient_share / machine.gemm / 1e9,
            "inverse": inverse / machine.gemm / 1e9,
            "traffic": self.sent_bytes(N) / machine.link / 1e9,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gemm", type=float, default=94, help="GFLOP/s of one process")
    parser.add_argument("--gradient-share", type=float, default=0.5)
    parser.add_argument("--window-share", type=float, default=0.66)
    parser.add_argument("--block-share", type=float, default=0.14)
    parser.add_argument("--link", type=float, default=1.0, help="GB/s that one process can send")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--model", nargs="+", default=MODELS, help="NAME:WEIGHTS:GMACS")
    parser.add_argument("-m", type=int, default=1024, help="number of gradients")
    parser.add_argument("-k", type=int, default=8, help="samples of a gradient")
    parser.add_argument("-B", type=int, default=128, help="columns of a block")
    given = parser.parse_args()
    machine = Machine(
        given.gemm, given.gradient_share, given.window_share, given.block_share, given.link
    )
    rows = []
    print("| model | Fisher | N | Fisher, GB | sent, GB | gradients, s | inverse, s | traffic, s |")
    print("|---|---|---|---|---|---|---|---|")
    for model in given.model:
        name, weights, gmacs = model.rsplit(":", 2)
        for B in (None, given.B):
            work = Work(float(weights), 1e9 * float(gmacs), given.m, given.k, B)
            for N in given.processes:
                rows.append(row(name, work, N, machine))
                print("| " + " | ".join(f"{value}" for value in rows[-1].values()) + " |")
    print(json.dumps({"machine": asdict(machine), "rows": rows}))


def row(name: str, work: Work, N: int, machine: Machine) -> dict[str, object]:
    return {
        "model": name,
        "Fisher": "full" if work.B is None else f"blocks of {work.B}",
        "N": N,
        "Fisher, GB": _short(work.fisher_bytes(N) / 1e9),
        "sent, GB": _short(work.sent_bytes(N) / 1e9),
        **{key: _short(value) for key, value in work.seconds(N, machine).items()},
    }


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    main()
