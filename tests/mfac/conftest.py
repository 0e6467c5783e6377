"""Dense float64 oracles: the formulas written out on explicit matrices."""

import threading
from collections.abc import Callable
from contextlib import contextmanager

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


_COUNT = 3


class _Thread:
    """A process group whose members are threads."""

    def __init__(self, rank, table, barrier):
        self.rank, self._table, self._barrier = rank, table, barrier

    def _all(self, x):
        self._table[self.rank] = x
        self._barrier.wait(timeout=20)
        parts = list(self._table)
        self._barrier.wait(timeout=20)
        return parts

    def all_reduce(self, x):
        return torch.stack(self._all(x.clone())).sum(dim=0)

    def all_gather(self, x):
        return torch.cat(self._all(x))

    @contextmanager
    def raise_on_every_rank(self):
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        errors = [e for e in self._all(error) if e is not None]
        if errors:
            raise errors[0]


def _on_all_ranks(work):
    """Return the results of work(group) on all ranks; raise the first error of any."""
    table, barrier = [None] * _COUNT, threading.Barrier(_COUNT)
    results, errors = [None] * _COUNT, []

    def run(rank):
        try:
            results[rank] = work(_Thread(rank, table, barrier))
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(_COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.fixture
def on_all_ranks():
    """Call ``work(group)`` on 3 ranks, which are threads; the results, or the first error."""
    return _on_all_ranks
