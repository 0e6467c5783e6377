"""Gradients of the loss with respect to the weights of interest, one flat row each."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mfac_compress.mfac.layout import TensorLayout

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


def loss_gradients(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    parameters: Mapping[str, nn.Parameter],
) -> Iterator[Tensor]:
    """Yield the gradient of each batch's mean loss.

    The model is used as it stands: put it into evaluation mode first, or batch norm and dropout
    make the gradients of one sample depend on the others.

    Args:
        model: Called as ``model(x)``.
        loss: ``(outputs, targets)`` -> scalar mean loss.
        batches: ``(x, y)``, one for each gradient.
        parameters: The weights of interest, in the order of the flat vector.

    Yields:
        A new gradient. Shape ``[d]``.

    Raises:
        ValueError: If a gradient is not finite; names the batch and the tensor. If the loss does
            not depend on one of the parameters.
    """
    layout = TensorLayout.of(parameters)
    tensors = list(parameters.values())
    for index, (x, y) in enumerate(batches):
        value = loss(model(x), y)
        parts = torch.autograd.grad(value, tensors, allow_unused=True)
        unused = [n for n, part in zip(parameters, parts, strict=True) if part is None]
        if unused:
            raise ValueError(
                f"Every pruned tensor must take part in the loss. Got none of {unused}. "
                "Exclude them from pruning."
            )
        flat = torch.cat([part.reshape(-1) for part in parts])
        if not torch.isfinite(flat).all():
            raise NonFiniteGradientError(index, _first_bad(layout, flat), value.item())
        yield flat


class NonFiniteGradientError(ValueError):
    """A gradient held NaN or infinity.

    Args:
        index: Position of the batch among those given.
        tensor: First tensor in which it shows.
        loss: Value of the batch's loss.
    """

    def __init__(self, index: int, tensor: str, loss: float) -> None:
        super().__init__(
            f"Gradients must be finite. Got NaN or infinity in the gradient of {tensor} for "
            f"batch {index} (loss {loss:g}). Look at that batch's samples and at the loss."
        )
        self.index = index
        self.tensor = tensor
        self.loss = loss


def _first_bad(layout: TensorLayout, flat: Tensor) -> str:
    return layout.name_at(int((~torch.isfinite(flat)).nonzero()[0]))
