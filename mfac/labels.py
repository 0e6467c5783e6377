"""Targets without labels: sampled from the model's own prediction, or random projections.

With labels sampled from the model's prediction the average of gᵢgᵢᵀ is the true Fisher, not the
empirical one. An output that is not a distribution over classes is projected onto random
directions u instead: gᵢgᵢᵀ of uᵀf(x) averages to JᵀJ, the Gauss-Newton matrix of a squared loss.

References:
    Kunstner, Balles, Hennig (2019), Limitations of the empirical Fisher approximation for natural
    gradient descent, section 2.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Batch, Tree, call, map_tensors, named_tensors, size

IGNORED = -100
"""Target of a position that takes no part in the loss, by PyTorch's convention."""


def sampled_labels(
    model: nn.Module, batches: Iterable[Batch], generator: torch.Generator
) -> Iterator[Batch]:
    """Replace each batch's targets by classes sampled from the model's prediction.

    Args:
        model: Returns one tensor of logits ``[n, classes, ...]``. In evaluation mode.
        batches: Of the targets only this is used: where one is -100 in a tensor of the labels'
            shape, as for padding, it remains so.
        generator: Random generator on the CPU.

    Raises:
        ValueError: If the model returns anything other than one tensor of logits.
    """
    for inputs, targets in batches:
        logits = _logits(_outputs(model, inputs)).movedim(1, -1)
        probabilities = logits.softmax(dim=-1).reshape(-1, logits.shape[-1]).cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator)
        labels = labels.view(logits.shape[:-1]).to(logits.device)
        if isinstance(targets, Tensor) and targets.shape == labels.shape:
            labels = labels.masked_fill(targets == IGNORED, IGNORED)
        yield Batch(inputs, labels)


def random_projections(
    model: nn.Module, batches: Iterable[Batch], generator: torch.Generator
) -> Iterator[Batch]:
    """Replace each batch's targets by standard normal directions, a tree of the outputs' form.

    Use it with :func:`projection_loss`.
    """
    for inputs, _ in batches:
        yield Batch(
            inputs, map_tensors(lambda t: _direction(t, generator), _outputs(model, inputs))
        )


def projection_loss(outputs: Tree, directions: Tree) -> Tensor:
    """Mean over the samples of uᵀf(x), summed over the outputs. ``[n, ...]`` each -> scalar."""
    products = map_tensors(lambda output, u: (output * u).sum(), outputs, directions)
    return sum(product for _, product in named_tensors(products)) / size(outputs)


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor) and outputs.ndim >= 2 and outputs.is_floating_point():
        return outputs
    if isinstance(outputs, Tensor):
        found = f"one of type {outputs.dtype} and shape {list(outputs.shape)}"
    else:
        found = f"a {type(outputs).__name__}"
    raise ValueError(
        "To sample labels, the model must return one tensor of logits [n, classes, ...]. Got "
        f"{found}. Pick it with model.output."
    )


def _direction(output: Tensor, generator: torch.Generator) -> Tensor:
    """Zero for outputs that are no floats, such as positions: they have no gradient."""
    if not output.is_floating_point():
        return torch.zeros_like(output)
    return torch.randn(output.shape, generator=generator).to(output)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tree) -> Any:
    return call(model, inputs)
