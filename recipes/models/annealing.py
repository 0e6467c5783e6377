"""Annealed importance sampling: log Z of an Ising model too large to sum.

    python recipes/models/annealing.py --side 10

Chains start where Z is known, at f(x)^0 = 1 with Z = 2^D, and move through f(x)^β for β from 0 to
1. A chain's weight is the product of f(x)^(β' - β) over all steps from β to β', and the mean of the
weights is Z / 2^D without bias, however short the chains are.

References:
    Neal (2001), Annealed importance sampling.
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np

from mfac_compress.recipes.models.ising import Ising


@dataclass(frozen=True)
class Estimate:
    """An estimate of log Z.

    Attributes:
        log_partition: log Z.
        standard_error: Of log Z, from the spread of the weights.
        effective: How many equally weighted chains say as much as these.
    """

    log_partition: float
    standard_error: float
    effective: float


def anneal(model: Ising, chains: int, steps: int, rng: np.random.Generator) -> Estimate:
    """Estimate log Z from independent chains.

    Args:
        model: The Ising model.
        chains: How many, at least 2.
        steps: From β = 0 to β = 1. More of them bring the weights nearer to each other.
        rng: Of all draws.
    """
    spins = rng.choice([-1.0, 1.0], (chains, *model.fields.shape))
    log_weights = np.zeros(chains)
    betas = np.linspace(0, 1, steps + 1)
    for before, after in itertools.pairwise(betas):
        log_weights += (after - before) * model.log_weights(spins)
        gibbs_sweep(model, spins, after, rng)
    largest = log_weights.max()
    weights = np.exp(log_weights - largest)
    mean = weights.mean()
    return Estimate(
        log_partition=float(model.sites * np.log(2) + largest + np.log(mean)),
        standard_error=float(weights.std(ddof=1) / mean / np.sqrt(chains)),
        effective=float(weights.sum() ** 2 / (weights**2).sum()),
    )


def gibbs_sweep(model: Ising, spins: np.ndarray, beta: float, rng: np.random.Generator) -> None:
    """Draw every spin anew from f(x)^β given its neighbours, which leaves f(x)^β as it is.

    The sites of one colour of a chessboard have no bonds with each other: all at once.

    Args:
        model: The Ising model.
        spins: Changed in place. Shape ``[chains, rows, columns]``.
        beta: β.
        rng: Of the draws.
    """
    rows, columns = np.indices(model.fields.shape)
    for colour in (0, 1):
        neighbours = np.zeros_like(spins)
        neighbours[:, 1:] += spins[:, :-1]
        neighbours[:, :-1] += spins[:, 1:]
        neighbours[:, :, 1:] += spins[:, :, :-1]
        neighbours[:, :, :-1] += spins[:, :, 1:]
        log_odds = 2 * beta * (model.coupling * neighbours + model.fields)
        drawn = np.where(rng.random(spins.shape) < 1 / (1 + np.exp(-log_odds)), 1.0, -1.0)
        chosen = (rows + columns) % 2 == colour
        spins[:, chosen] = drawn[:, chosen]


def main() -> None:
    """Print the estimate beside the exact log Z."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=10, help="of the grid; exact sums take 2^side")
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    model = Ising.random(arguments.side, arguments.side)
    found = anneal(model, arguments.chains, arguments.steps, np.random.default_rng(0))
    exact = model.log_sums(np.zeros((1, model.sites)))[0]
    print(f"annealed: log Z = {found.log_partition:.4f}, standard error {found.standard_error:.4f}")
    print(f"          {arguments.chains} chains, as good as {found.effective:.0f} of equal weight")
    print(f"exact:    log Z = {exact:.4f}")


if __name__ == "__main__":
    main()
