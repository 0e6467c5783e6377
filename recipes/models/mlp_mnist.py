"""The small MLP of the WoodFisher paper (Singh and Alistarh 2020): 784-40-20-10, without biases."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Images of 28x28 pixels to scores of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 40, bias=False)
        self.fc2 = nn.Linear(40, 20, bias=False)
        self.fc3 = nn.Linear(20, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 28, 28]`` to scores ``[n, 10]``."""
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(x)))


def mlp() -> MLP:
    """Build the network, untrained; 32,360 parameters."""
    return MLP()
