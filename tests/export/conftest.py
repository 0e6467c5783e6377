from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mfac_compress.export import export_onnx


class Net(nn.Module):
    """One of each: convolution with batch norm, grouped, 1x1, linear on 3-D and on 2-D inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm2 = nn.BatchNorm2d(32)
        self.point = nn.Conv2d(32, 16, 1)
        self.mix = nn.Linear(16, 24)
        self.square = nn.Linear(24, 24, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.point(torch.relu(self.norm2(self.grouped(x)))).flatten(2)
        return self.head(self.square(torch.relu(self.mix(x))).mean(1))


@dataclass(frozen=True)
class Pruned:
    model: Net
    masks: dict[str, Tensor]
    path: Path


@pytest.fixture(scope="session", autouse=True)
def _fast_exporter(fast_exporter: None) -> None:
    """For all tests here."""


@pytest.fixture(scope="session")
def pruned(tmp_path_factory) -> Pruned:
    """A net whose removed weights are +0 and -0, and its ONNX file with a dynamic batch axis."""
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for norm in (model.norm, model.norm2):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)
        masks = {n: torch.rand_like(p) > 0.8 for n, p in model.named_parameters() if p.ndim > 1}
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(model, torch.randn(2, 3, 4, 4), path, metadata={"sparsity": "0.8"})
    return Pruned(model, masks, path)
