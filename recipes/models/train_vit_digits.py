"""Train the model of `recipes/vit-digits.yaml`. Its weights are shipped; to make them again:

    python recipes/models/train_vit_digits.py

It trains on rows 0..1200 of the digits that come with the package, the calibration rows of the
recipe, and writes `vit-digits.safetensors` beside this file. The other 597 rows are for validation
and are read only to print the accuracy.
"""

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from vit_digits import vit_digits

DIGITS = Path(__file__).parents[2] / "pipeline" / "inputs" / "digits.npz"
TRAIN_ROWS = 1200
EPOCHS = 100
BATCH = 50


def main() -> None:
    """Train, print the accuracy, write the weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with np.load(DIGITS) as digits:
        x = torch.tensor(digits["images"], dtype=torch.float32)[:, None] / 16
        y = torch.tensor(digits["targets"], dtype=torch.long)
    model = vit_digits()
    start = time.process_time()
    train(model, x[:TRAIN_ROWS], y[:TRAIN_ROWS])
    print(f"{EPOCHS} epochs in {time.process_time() - start:.0f} s of processor time")
    with torch.no_grad():
        accuracy = (model(x[TRAIN_ROWS:]).argmax(1) == y[TRAIN_ROWS:]).float().mean()
    print(f"accuracy on rows {TRAIN_ROWS}..{len(x)}: {accuracy:.4f}")
    save_file(model.state_dict(), Path(__file__).parent / "vit-digits.safetensors")


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Fit the model and leave it in evaluation mode.

    Args:
        model: Changed in place.
        x: Images. Shape ``[n, 1, 8, 8]``.
        y: Classes. Shape ``[n]``.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=EPOCHS * len(x) // BATCH
    )
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            outputs = model(shift_each(x[rows]))
            nn.functional.cross_entropy(outputs, y[rows], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def shift_each(x: Tensor) -> Tensor:
    """Move each image by up to one pixel, a different way each time.

    Args:
        x: Images. Shape ``[n, 1, 8, 8]``.
    Returns:
        Images of the same shape, the uncovered border black.
    """
    windows = nn.functional.pad(x, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)
    down, right = torch.randint(0, 3, (2, len(x)))
    return windows[torch.arange(len(x)), :, down, right]


if __name__ == "__main__":
    main()
