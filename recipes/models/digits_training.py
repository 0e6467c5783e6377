"""Training of classifiers of the digits that come with the package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

DIGITS = Path(__file__).parents[2] / "pipeline" / "inputs" / "digits.npz"
TRAIN_ROWS = 1200
"""Of the 1,797; the others are for validation."""
BATCH = 50


@dataclass(frozen=True)
class Settings:
    """How a classifier is trained.

    Attributes:
        epochs: Passes over the images.
        lr: Largest learning rate.
        weight_decay: Of AdamW.
        label_smoothing: Of the loss.
        shift: Moves the images of a batch, ``[n, 1, 8, 8]``, at random.
    """

    epochs: int
    lr: float
    weight_decay: float
    label_smoothing: float
    shift: Callable[[Tensor], Tensor]


def train_on_digits(build: Callable[[], nn.Module], settings: Settings) -> nn.Module:
    """Train a classifier, print its accuracy on the validation rows, and return it.

    Args:
        build: Returns the untrained model of images ``[n, 1, 8, 8]``.
        settings: How to train.
    Returns:
        The model in evaluation mode.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with np.load(DIGITS) as digits:
        x = torch.tensor(digits["images"], dtype=torch.float32)[:, None] / 16
        y = torch.tensor(digits["targets"], dtype=torch.long)
    model = build()
    _train(model, x[:TRAIN_ROWS], y[:TRAIN_ROWS], settings)
    with torch.no_grad():
        accuracy = (model(x[TRAIN_ROWS:]).argmax(1) == y[TRAIN_ROWS:]).float().mean()
    print(f"accuracy on rows {TRAIN_ROWS}..{len(x)}: {accuracy:.4f}")
    return model


def _train(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> None:
    """Fit a model to images ``[n, 1, 8, 8]`` and classes ``[n]``; leave it in evaluation mode."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=settings.epochs * len(x) // BATCH
    )
    model.train()
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            outputs = model(settings.shift(x[rows]))
            loss = nn.functional.cross_entropy(
                outputs, y[rows], label_smoothing=settings.label_smoothing
            )
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
