"""The quickstart's model: a small convolutional net for 8x8 digits."""

from torch import nn


def digits_convnet() -> nn.Module:
    """Build the net, untrained.

    Returns:
        A module that takes ``[n, 1, 8, 8]`` in 0..1 and returns ``[n, 10]`` scores; 223,466
        parameters, 9 million multiplications an image.
    """
    return nn.Sequential(
        *_block(1, 32),
        *_block(32, 96),
        *_block(96, 96),
        nn.MaxPool2d(2),
        *_block(96, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    # The batch norm right behind has the bias.
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
