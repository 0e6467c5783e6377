"""The quickstart's model: a small convolutional net for 8x8 digits."""

from torch import nn


def digits_convnet() -> nn.Module:
    """Build the net, untrained.

    Returns:
        A module that takes ``[n, 1, 8, 8]`` in 0..1 and returns ``[n, 10]`` scores; 28,842
        parameters.
    """
    return nn.Sequential(
        *_block(1, 32),
        *_block(32, 32),
        nn.MaxPool2d(2),
        *_block(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    # The batch norm right behind has the bias.
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
