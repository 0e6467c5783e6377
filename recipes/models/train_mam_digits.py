"""Train the model of `recipes/mam-digits.yaml`. Its weights are shipped; to make them again:

    python recipes/models/train_mam_digits.py

Maximum likelihood: the conditionals learn from images with random pixels hidden, as an any-order
autoregressive model does, and the marginals learn to agree with them. They must agree everywhere
and not only where there are images, so half of the samples are the network's own: chains in which a
few pixels are drawn anew at each step.

References:
    Liu, Ramadge, Adams (2023), Generative marginalization models, arXiv:2310.12920, section 4.1.
"""

import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.recipes.models.mam import (
    MarginalizationModel,
    growing_sets,
    log_conditionals,
    train_on_chains,
)
from mfac_compress.recipes.models.mam_digits import (
    PENALTY,
    bits_by_marginals,
    bits_per_dimension,
    digits,
    inconsistency,
    mam,
    samples,
)

STEPS, BATCH, TERMS = 800, 64, 4
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
CHAINS = 1200
PIXELS_PER_STEP = 4


def main() -> None:
    """Train, print the metrics of held-out images, write the weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = mam()
    start = time.process_time()
    train(model, digits()[0], STEPS, BATCH)
    print(f"{STEPS} steps in {time.process_time() - start:.0f} s of processor time")
    for name, value in held_out(model).items():
        print(f"{name}: {value:.4f}")
    save_file(model.state_dict(), Path(__file__).parent / "mam-digits.safetensors")


def train(model: MarginalizationModel, images: Tensor, steps: int, batch: int) -> None:
    """Fit the model, and leave it in evaluation mode.

    Args:
        model: Changed in place.
        images: Of -1 and +1. Shape ``[n, pixels]``.
        steps: Of the optimizer.
        batch: Images of a step, and as many samples of the network's own.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    chains = images[torch.randint(len(images), (CHAINS,))]

    def loss(own: Tensor) -> Tensor:
        return likelihood_loss(model, images[torch.randint(len(images), (batch,))], own)

    train_on_chains(model, optimizer, chains, steps, batch=batch, sites=PIXELS_PER_STEP, loss=loss)


def likelihood_loss(model: MarginalizationModel, images: Tensor, own: Tensor) -> Tensor:
    """Negative log-likelihood of images by the conditionals plus the penalty on self-consistency.

    log p(x) is a sum over the D places of an order; its estimate is D times the mean over a few
    neighbouring places, and over all pixels that might come next. The penalty leaves the
    conditionals alone: they have learnt from images what the marginals have to follow.

    Args:
        model: In training mode.
        images: Shape ``[n, pixels]``.
        own: Samples of the model, on which it has to be consistent too. Shape ``[m, pixels]``.
    Returns:
        A scalar.
    """
    x = torch.cat([images, own])
    sets, site = growing_sets(x, TERMS)
    answers = model(sets)
    nothing = model(torch.zeros_like(x[:1]))[0, 0]
    before, hidden = answers[: len(images), :-1, 1:], sets[: len(images), :-1] == 0
    log_p = F.logsigmoid(images[:, None] * before) * hidden
    likelihood = x.shape[1] * (log_p.sum(-1) / hidden.sum(-1)).mean()
    conditionals = log_conditionals(answers[:, :-1], site, x.gather(1, site)).detach()
    missed = answers[:, :-1, 0] + conditionals - answers[:, 1:, 0]
    return PENALTY * (missed.square().mean() + nothing.square()) - likelihood


@torch.no_grad()
def held_out(model: MarginalizationModel) -> dict[str, float]:
    """The metrics of the images that were not trained on."""
    questions, targets = zip(*samples()["validation"], strict=True)
    outputs = model(torch.stack(questions))
    joined = {name: torch.stack([each[name] for each in targets]) for name in targets[0]}
    metrics = (bits_per_dimension, bits_by_marginals, inconsistency)
    return {metric.__name__: metric(outputs, joined).mean().item() for metric in metrics}


if __name__ == "__main__":
    main()
