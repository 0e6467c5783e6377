"""Train the quickstart's model. Its weights are shipped; run this only to make them again:

    python recipes/models/train_digits.py

It trains on rows 0..1200 of the digits that come with the package, the calibration and recovery
rows of `recipes/digits.yaml`, and writes `digits.safetensors` beside this file. The other 597 rows
are for validation and are read only to print the accuracy.
"""

from pathlib import Path

import torch
from digits_convnet import digits_convnet
from digits_training import Settings, train_on_digits
from safetensors.torch import save_file
from torch import Tensor, nn


def main() -> None:
    """Train, print the accuracy, write the weights."""
    settings = Settings(epochs=40, lr=3e-3, weight_decay=1e-2, label_smoothing=0.05, shift=shift)
    model = train_on_digits(digits_convnet, settings)
    save_file(model.state_dict(), Path(__file__).parent / "digits.safetensors")


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
