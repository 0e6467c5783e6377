"""Dense float64 oracles: the formulas written out on explicit matrices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Fisher = Callable[..., Tensor]


def _dense_fisher(gradients: Tensor, damping: float, block_size: int | None = None) -> Tensor:
    """λI + GᵀG/m with everything outside the diagonal blocks set to zero. Shape ``[d, d]``."""
    m, d = gradients.shape
    G = gradients.double()
    blocks = torch.arange(d) // (block_size or d)
    same = blocks[:, None] == blocks[None, :]
    return (G.T @ G / m) * same + damping * torch.eye(d, dtype=torch.float64)


@pytest.fixture
def dense_fisher() -> Fisher:
    return _dense_fisher


@pytest.fixture
def gradients() -> Callable[[int, int], Tensor]:
    """Random gradients ``[m, d]``, the same for the same shape."""

    def make(m: int, d: int) -> Tensor:
        return torch.randn(m, d, generator=torch.Generator().manual_seed(m * 1000 + d))

    return make
