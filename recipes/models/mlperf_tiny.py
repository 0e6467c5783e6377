"""Two reference models of MLPerf Tiny (Banbury et al. 2021): image classification and keywords."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-3
"""Of batch norm, as in Keras, where these models were trained."""


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=int(stride == 1))
        self.bn1 = nn.BatchNorm2d(outputs, eps=_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs, eps=_EPS)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow's "same" padding puts what is odd at the right and the bottom.
        padded = F.pad(x, (0, 1, 0, 1)) if self.skip else x
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(padded)))))
        return F.relu(out + (self.skip(x) if self.skip else x))


class ResNet8(nn.Module):
    """Images of 32x32 pixels to scores of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16, eps=_EPS)
        self.layer1 = _Block(16, 16, stride=1)
        self.layer2 = _Block(16, 32, stride=2)
        self.layer3 = _Block(32, 64, stride=2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3, 32, 32]``, pixels in 0..255, to scores ``[n, 10]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.avg_pool2d(x, 8), 1))


class DSCNN(nn.Module):
    """Coefficients of one second of speech to scores of twelve keywords."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2)]
        layers = [*first, nn.BatchNorm2d(64, eps=_EPS), nn.ReLU()]
        for _ in range(4):
            for conv in (nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.Conv2d(64, 64, 1)):
                layers += [conv, nn.BatchNorm2d(64, eps=_EPS), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 49, 10]`` (frames, coefficients) to scores ``[n, 12]``."""
        x = F.avg_pool2d(self.features(x.unsqueeze(1)), (24, 5))
        return self.classifier(torch.flatten(x, 1))


def resnet8() -> ResNet8:
    """Build ResNet-8, untrained; 78,186 parameters and batch-norm statistics."""
    return ResNet8()


def dscnn() -> DSCNN:
    """Build DS-CNN, untrained; 23,756 parameters and batch-norm statistics."""
    return DSCNN()
