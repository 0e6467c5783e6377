"""What `recipes/mam-digits.yaml` names: the network, questions to it, loss and metrics.

A sample is an image of black and white pixels and an order of them. The D + 1 questions ask for the
pixels so far: none, the first, the first two, ... all of them. So one sample has log p(x) twice, as
the sum of its conditionals and as the last marginal, and in between all that self-consistency
misses.
"""

from math import log
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mfac_compress.recipes.models.mam import (
    MarginalizationModel,
    growing_sets,
    log_conditionals,
    residuals,
)

DIGITS = Path(__file__).parents[2] / "pipeline" / "inputs" / "digits.npz"
TRAIN_ROWS = 1200
WHITE = 8
"""Gray levels from here on are white; there are 17."""
PIXELS = 64
WORST_BITS, WORST_NATS = 2.0, 2.0
"""Beyond these an image counts no more, so that the metrics have a range: how much one image can
change is what 575 of them leave open. Coin flips take 1 bit, and no image of the dense model more
than 0.88 bits, or 0.29 nats."""
PENALTY = 4.0
"""Of self-consistency in the loss."""


def mam(hidden: int = 384) -> MarginalizationModel:
    """Build the network, untrained; 370,241 parameters."""
    return MarginalizationModel(PIXELS, hidden, hidden, blocks=1)


def digits() -> tuple[Tensor, Tensor]:
    """Return the images for training and the held-out ones that are not among them.

    Returns:
        Two tensors of -1 and +1. Shape ``[n, pixels]``, float32.
    """
    with np.load(DIGITS) as arrays:
        images = np.where(arrays["images"].reshape(-1, PIXELS) >= WHITE, 1, -1).astype(np.float32)
    train, others = images[:TRAIN_ROWS], images[TRAIN_ROWS:]
    seen = {image.tobytes() for image in train}
    held_out = np.stack([image for image in others if image.tobytes() not in seen])
    return torch.from_numpy(train), torch.from_numpy(held_out)


def samples() -> dict[str, list[tuple[Tensor, dict[str, Tensor]]]]:
    """Return the splits, each image with one order of its pixels, the same in every call.

    Returns:
        For each sample the questions, shape ``[pixels + 1, pixels]``, and ``site`` and ``value`` of
        the pixel that comes next, shapes ``[pixels]``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train, held_out = (in_random_order(images) for images in digits())
    return {"calibration": train, "validation": held_out}


def in_random_order(images: Tensor) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Ask for the pixels of each image one by one. ``[n, pixels]`` -> n samples."""
    sets, site = growing_sets(images, images.shape[1])
    value = images.gather(1, site)
    targets = ({"site": each, "value": own} for each, own in zip(site, value, strict=True))
    return list(zip(sets, targets, strict=True))


def loss(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Negative log-likelihood by both heads plus the penalty on self-consistency.

    Args:
        outputs: Of the network. Shape ``[n, pixels + 1, pixels + 1]``.
        targets: ``site`` and ``value``, shapes ``[n, pixels]``.
    """
    by_conditionals = log_conditionals(outputs[:, :-1], **targets).sum(1)
    missed = _missed(outputs, targets)
    likelihood = (outputs[:, -1, 0] + by_conditionals).mean()
    return PENALTY * missed.square().mean() - likelihood


def bits_per_dimension(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """-log2 p(x) / D by the conditionals, whose probabilities sum to 1; at most 2. ``[n]``."""
    return _bits(log_conditionals(outputs[:, :-1], **targets).sum(1))


def bits_by_marginals(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """-log2 p(x) / D by one pass: p(x) of all pixels over p of none, which is 1. ``[n]``."""
    return _bits(outputs[:, -1, 0] - outputs[:, 0, 0])


def inconsistency(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Mean of |log p(x_S) + log p(x_i | x_S) - log p(x_S, x_i)| along the order, in nats."""
    return _missed(outputs, targets).abs().mean(1).clamp(max=WORST_NATS)


def _missed(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return residuals(outputs[:, :-1], outputs[:, 1:], targets["site"], targets["value"])


def _bits(log_likelihood: Tensor) -> Tensor:
    return (-log_likelihood / (log(2) * PIXELS)).clamp(0, WORST_BITS)
