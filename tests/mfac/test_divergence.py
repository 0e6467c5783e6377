"""The divergence is PyTorch's, also where a class has no probability."""

import torch
from torch.nn import functional as F

from mfac_compress.mfac.divergence import kl_divergence


def _logits(seed):
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_sum_over_an_axis_of_pytorchs_terms():
    wanted, logits = _logits(0), _logits(1)
    p, q = wanted.log_softmax(dim=1), logits.log_softmax(dim=1)
    expected = F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
    torch.testing.assert_close(kl_divergence(wanted, logits, axis=1), expected)


def test_a_class_without_probability_counts_for_nothing_and_leaves_gradients_finite():
    wanted, logits = _logits(0), _logits(1)
    without = kl_divergence(wanted[:, 1:], logits[:, 1:], axis=1)
    wanted[:, 0] = logits[:, 0] = -torch.inf  # both models mask it
    logits.requires_grad_(True)

    divergence = kl_divergence(wanted, logits, axis=1)
    divergence.sum().backward()

    torch.testing.assert_close(divergence.detach(), without)
    assert logits.grad.isfinite().all()
