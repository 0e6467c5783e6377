"""Targets without labels: sampled from the model's own prediction, or random projections.

With labels sampled from the model's prediction the average of gᵢgᵢᵀ is the true Fisher, not the
empirical one. An output that is not a distribution over classes is projected onto random
directions u instead: gᵢgᵢᵀ of uᵀf(x) averages to JᵀJ, the Gauss-Newton matrix of a squared loss.

References:
    Kunstner, Balles, Hennig (2019), Limitations of the empirical Fisher approximation for natural
    gradient descent, section 2.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mfac_compress.mfac.gradients import Batch


def sampled_labels(
    model: nn.Module, batches: Iterable[Batch], generator: torch.Generator
) -> Iterator[Batch]:
    """Replace each batch's targets by classes sampled from the model's prediction.

    Args:
        model: Returns logits ``[n, classes, ...]``. In evaluation mode.
        batches: ``(x, y)``; ``y`` is not used.
        generator: Random generator on the CPU.
    """
    for x, _ in batches:
        logits = _outputs(model, x).movedim(1, -1)
        probabilities = logits.softmax(dim=-1).reshape(-1, logits.shape[-1]).cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator)
        yield x, labels.view(logits.shape[:-1]).to(x.device)


def random_projections(
    model: nn.Module, batches: Iterable[Batch], generator: torch.Generator
) -> Iterator[Batch]:
    """Replace each batch's targets by standard normal directions of the output's shape.

    Use it with :func:`projection_loss`.
    """
    for x, _ in batches:
        outputs = _outputs(model, x)
        directions = torch.randn(outputs.shape, generator=generator)
        yield x, directions.to(outputs)


def projection_loss(outputs: Tensor, directions: Tensor) -> Tensor:
    """Mean over the samples of uᵀf(x). Shapes ``[n, ...]`` -> scalar."""
    return (outputs * directions).sum() / outputs.shape[0]


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)
