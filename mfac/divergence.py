"""How far the classes that one model predicts are from those of another."""

import torch
from torch import Tensor


def kl_divergence(wanted: Tensor, logits: Tensor, axis: int) -> Tensor:
    """KL(softmax(wanted) ‖ softmax(logits)) along an axis, which the result is without.

    Args:
        wanted: Logits. A class of probability 0, of logit −∞, adds nothing.
        logits: Of the same shape.
    """
    p, q = wanted.log_softmax(dim=axis), logits.log_softmax(dim=axis)
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0).sum(dim=axis)
