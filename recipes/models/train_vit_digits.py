"""Train the model of `recipes/vit-digits.yaml`. Its weights are shipped; to make them again:

    python recipes/models/train_vit_digits.py

It trains on rows 0..1200 of the digits that come with the package, the calibration rows of the
recipe, and writes `vit-digits.safetensors` beside this file. The other 597 rows are for validation
and are read only to print the accuracy.
"""

import time
from pathlib import Path

import torch
from digits_training import Settings, train_on_digits
from safetensors.torch import save_file
from torch import Tensor, nn
from vit_digits import vit_digits


def main() -> None:
    """Train, print the accuracy, write the weights."""
    settings = Settings(
        epochs=100, lr=2e-3, weight_decay=0.1, label_smoothing=0.1, shift=shift_each
    )
    start = time.process_time()
    model = train_on_digits(vit_digits, settings)
    print(f"{settings.epochs} epochs in {time.process_time() - start:.0f} s of processor time")
    save_file(model.state_dict(), Path(__file__).parent / "vit-digits.safetensors")


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
