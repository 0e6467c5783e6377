"""Train the quickstart's model. Its weights are shipped; run this only to make them again:

    python recipes/models/train_digits.py

It trains on rows 0..1200 of the digits that come with the package, the calibration and recovery
rows of `recipes/digits.yaml`, and writes `digits.safetensors` beside this file. The other 597 rows
are for validation and are read only to print the accuracy.
"""

from pathlib import Path

import numpy as np
import torch
from digits_convnet import digits_convnet
from safetensors.torch import save_file
from torch import Tensor, nn

DIGITS = Path(__file__).parents[2] / "pipeline" / "inputs" / "digits.npz"
TRAIN_ROWS = 1200
EPOCHS = 40
BATCH = 50


def main() -> None:
    """Train, print the accuracy, write the weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with np.load(DIGITS) as digits:
        x = torch.tensor(digits["images"], dtype=torch.float32)[:, None] / 16
        y = torch.tensor(digits["targets"], dtype=torch.long)
    model = digits_convnet()
    train(model, x[:TRAIN_ROWS], y[:TRAIN_ROWS])
    accuracy = (model(x[TRAIN_ROWS:]).argmax(1) == y[TRAIN_ROWS:]).float().mean()
    print(f"accuracy on rows {TRAIN_ROWS}..{len(x)}: {accuracy:.4f}")
    save_file(model.state_dict(), Path(__file__).parent / "digits.safetensors")


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Fit the model and leave it in evaluation mode.

    Args:
        model: Changed in place.
        x: Images. Shape ``[n, 1, 8, 8]``.
        y: Classes. Shape ``[n]``.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=EPOCHS * len(x) // BATCH
    )
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(shift(x[rows])), y[rows], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def shift(x: Tensor) -> Tensor:
    """Move a whole batch by up to one pixel, a different way each time.

    Args:
        x: Images. Shape ``[n, 1, 8, 8]``.
    Returns:
        Images of the same shape, the uncovered border black.
    """
    down, right = torch.randint(0, 3, (2,)).tolist()
    return nn.functional.pad(x, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


if __name__ == "__main__":
    main()
