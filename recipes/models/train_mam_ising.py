"""Train the model of `recipes/mam-ising.yaml`; `make mam` does so first:

    python recipes/models/train_mam_ising.py dense.safetensors [--side 10]

Training needs energies alone: it sees no sample of the Ising model and no exact sum, only log f of
what the network itself draws. The loss is KL(p_θ ‖ f / Z) plus a penalty on self-consistency, on
persistent chains whose spins are drawn anew, a few at each step, from the network's conditionals.

References:
    Liu, Ramadge, Adams (2023), Generative marginalization models, arXiv:2310.12920, section 4.2.
"""

import argparse
import hashlib
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mfac_compress.recipes.models.ising import Ising
from mfac_compress.recipes.models.mam import (
    MarginalizationModel,
    growing_sets,
    residuals,
    train_on_chains,
)
from mfac_compress.recipes.models.mam_ising import SIDE, ising, mam


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--side", type=int, default=SIDE, help="of the square of spins")
    arguments = parser.parse_args()
    side = arguments.side
    steps, trained_by = STEPS_PER_SITE * side * side, sources(side)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = mam(side=side)
    start = time.process_time()
    train(model, ising(side), steps, BATCH)
    print(f"{steps} steps in {time.process_time() - start:.0f} s of processor time")
    save_file(model.state_dict(), arguments.output, metadata={"sources": trained_by})


def sources(side: int = SIDE) -> str:
    """Digest of what is trained and of the files that say how."""
    names = ("ising.py", "mam.py", "mam_ising.py", "train_mam_ising.py")
    texts = (Path(__file__).with_name(name).read_bytes() for name in names)
    return hashlib.sha256(b"".join([*texts, str(side).encode()])).hexdigest()


def is_current(weights: Path, side: int = SIDE) -> bool:
    """Whether a file is there and was trained by these sources."""
    if not weights.is_file():
        return False
    with safe_open(weights, framework="pt") as file:
        return (file.metadata() or {}).get("sources") == sources(side)


def train(model: MarginalizationModel, energy: Ising, steps: int, batch: int) -> None:
    """Fit the model by the energy, and leave it in evaluation mode.

    Args:
        model: Changed in place.
        energy: Gives log f.
        steps: Of the optimizer.
        batch: Samples of a step.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    chains = 1 - 2 * torch.randint(2, (CHAINS, energy.sites)).float()

    def loss(x: Tensor) -> Tensor:
        return energy_loss(model, x, torch.from_numpy(energy.log_weights(x.numpy())).float())

    sites = energy.sites // REDRAWN
    train_on_chains(model, optimizer, chains, steps, batch=batch, sites=sites, loss=loss)


def energy_loss(model: MarginalizationModel, x: Tensor, log_weights: Tensor) -> Tensor:
    """A loss with the gradient of KL(p_θ ‖ f / Z), plus the penalty on self-consistency.

    By the score-function estimator the gradient of KL is E[(r - E r) ∇ log p_θ(x)] with
    r = log p_θ(x) - log f(x), that of half the variance of r. log p(?, ..., ?) is held at 0, which
    fixes Z.

    Args:
        model: In training mode.
        x: Drawn from the model. Shape ``[n, sites]``.
        log_weights: log f(x). Shape ``[n]``.
    Returns:
        A scalar.
    """
    asked, site = growing_sets(x, TERMS)
    outputs = model(torch.cat([x, asked.flatten(0, 1), torch.zeros_like(x[:1])]))
    whole, answers, (nothing,) = outputs.split([len(x), len(x) * (TERMS + 1), 1])
    answers = answers.unflatten(0, (len(x), TERMS + 1))
    missed = residuals(answers[:, :-1], answers[:, 1:], site, x.gather(1, site))
    gap = whole[:, 0] - log_weights
    return gap.var() / 2 + PENALTY * (missed.square().mean() + nothing[0].square())


STEPS_PER_SITE, BATCH, TERMS = 120, 64, 4
LEARNING_RATE = 1e-3
CHAINS = 4096
REDRAWN = 8
"""A chain draws one in this many of its sites anew in each step."""
PENALTY = 4.0

if __name__ == "__main__":
    main()
