"""Removal one by one, against a dense computation on one block at a time."""

import pytest
import torch

from mfac_compress.mfac import fisher_of, invert
from mfac_compress.mfac.sequential import sequential_saliency


def _inverse(gradients, damping=1e-5, blocks=None):
    return invert(fisher_of(gradients, blocks), damping)


def _greedy(F, w, keep):
    """Remove the least salient weight, solve again for the remaining ones, and so on."""
    costs = torch.zeros_like(w)
    highest, alive, w = 0.0, keep.clone(), w.clone()
    while alive.any():
        index = alive.nonzero().flatten()
        P = torch.linalg.inv(F[index][:, index])
        losses = w[index] ** 2 / (2 * P.diag())
        best = losses.argmin()
        highest = max(highest, losses[best].item())
        costs[index[best]] = highest
        w[index] = w[index] - P[:, best] * w[index[best]] / P[best, best]
        alive[index[best]] = False
        w[index[best]] = 0
    return costs


@pytest.mark.parametrize("kept_share", [1.0, 0.6])
@pytest.mark.parametrize(("m", "d", "block_size"), [(30, 12, 12), (30, 20, 6), (9, 17, 5)])
def test_saliencies_are_those_of_the_dense_removal(
    gradients, dense_fisher, m, d, block_size, kept_share
):
    G, w = gradients(m, d), torch.randn(d, dtype=torch.float64)
    keep = torch.rand(d) < kept_share
    F = dense_fisher(G, 1e-3, block_size)

    saliency = sequential_saliency(w, keep, _inverse(G, 1e-3, block_size))

    for start in range(0, d, block_size):
        at = slice(start, min(start + block_size, d))
        torch.testing.assert_close(
            saliency[at], _greedy(F[at, at], w[at], keep[at]), rtol=1e-5, atol=1e-7
        )


def test_a_weights_saliency_grows_when_a_correlated_one_is_removed():
    """Two equal weights with the same gradients: one can be removed at no cost, both cannot."""
    G = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).repeat(2, 1)

    saliency = sequential_saliency(
        torch.ones(3), torch.ones(3, dtype=torch.bool), _inverse(G, 1e-6, 3)
    )

    cheap, _, dear = saliency.sort().values
    assert cheap < 1e-5
    assert dear > 0.5
