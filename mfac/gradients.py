"""Gradients of the loss with respect to the weights of interest, one flat row each.

Two methods give the same rows up to rounding: a plain loop with one backward pass per row, and
``torch.func.vmap`` over several rows at once. Which one is faster depends on model, machine and
samples per gradient, so :func:`fastest_method` times both.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mfac_compress.mfac.batch import Batch, Tree, arguments, call, named_tensors, size, stack
from mfac_compress.mfac.layout import Layout

Loss = Callable[[Tree, Tree], Tensor]
Method = Literal["loop", "vmap"]

# Samples that go through the model at once with vmap: enough to fill the machine's vector units,
# few enough that activations of all of them fit.
_SAMPLES_AT_ONCE = 32
_ROUNDING = 1e-3


@dataclass(frozen=True)
class GradientSource:
    """The model, the loss and the weights whose gradients are computed.

    The model is used as it is: put it into evaluation mode first, otherwise batch norm makes the
    gradient of one sample depend on the others, and dropout makes it random.

    Args:
        model: Called with a batch's inputs, as :func:`~mfac_compress.mfac.batch.call` does.
        loss: ``(outputs, targets)`` -> scalar mean loss.
        layout: The weights of interest, by the names of the model's parameters.
    """

    model: nn.Module
    loss: Loss
    layout: Layout

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights of interest by name, in the order of the layout."""
        parameters = dict(self.model.named_parameters())
        return {tensor.name: parameters[tensor.name] for tensor in self.layout}

    def rows(self, batches: Iterable[Batch], method: Method = "loop") -> Iterator[Tensor]:
        """Yield the gradients of the batches' mean losses, a few rows at a time.

        Args:
            batches: One for each gradient. With ``vmap`` only successive batches whose tensors
                have the same shapes are computed at once.
            method: How the gradients are computed.

        Yields:
            New gradients of successive batches. Shape ``[k, d]``. With either method zero for a
            tensor on which a batch's loss does not depend; :meth:`unused` names such tensors.

        Raises:
            NonFiniteGradientError: If a gradient is not finite; names batch and tensor.
        """
        compute = self._loop if method == "loop" else self._vmap
        done = 0
        for group in _groups(batches, 1 if method == "loop" else None):
            rows = compute(group)
            self._check(rows, group, done)
            done += len(rows)
            yield rows

    def unused(self, batches: Iterable[Batch]) -> list[str]:
        """Name the tensors on which none of the batches' losses depends.

        Args:
            batches: Tried one after the other, until each tensor has been used once.
        """
        left = list(self.parameters)
        for batch in batches:
            absent = {
                n for n, g in zip(self.parameters, self._parts(batch), strict=True) if g is None
            }
            left = [name for name in left if name in absent]
            if not left:
                break
        return left

    def _loop(self, group: Sequence[Batch]) -> Tensor:
        (batch,) = group
        parts = zip(self.parameters.items(), self._parts(batch), strict=True)
        gradients = {n: torch.zeros_like(weight) if g is None else g for (n, weight), g in parts}
        return self.layout.flatten(gradients).unsqueeze(0)

    def _parts(self, batch: Batch) -> Sequence[Tensor | None]:
        """The gradient of a batch by tensor; None where the loss does not depend on it."""
        inputs, targets = batch
        tensors = list(self.parameters.values())
        value = self.loss(call(self.model, inputs), targets)
        if not value.requires_grad:
            return [None] * len(tensors)
        return torch.autograd.grad(value, tensors, allow_unused=True)

    def _vmap(self, group: Sequence[Batch]) -> Tensor:
        state = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        state = {name: value.detach() for name, value in state.items()}
        chosen = {name: state.pop(name) for name in self.parameters}

        def mean_loss(weights: dict[str, Tensor], inputs: Tree, targets: Tree) -> Tensor:
            outputs = functional_call(self.model, {**state, **weights}, *arguments(inputs))
            return self.loss(outputs, targets)

        inputs, targets = stack([Batch(*batch) for batch in group])
        parts = vmap(grad(mean_loss), in_dims=(None, 0, 0))(chosen, inputs, targets)
        return self.layout.flatten(parts)

    def _check(self, rows: Tensor, group: Sequence[Batch], done: int) -> None:
        finite = torch.isfinite(rows)
        if finite.all():
            return
        row, column = (~finite).nonzero()[0].tolist()
        inputs, targets = group[row]
        with torch.no_grad():
            value = self.loss(call(self.model, inputs), targets).item()
        tensor = self.layout.name_at(column)
        raise NonFiniteGradientError(done + row, tensor, value)


def gradient_rows(
    model: nn.Module,
    loss: Loss,
    layout: Layout,
    batches: Iterable[Batch],
    method: Method = "loop",
) -> Iterator[Tensor]:
    """Yield the gradients of the batches' mean losses: :meth:`GradientSource.rows` of a source."""
    return GradientSource(model, loss, layout).rows(batches, method)


class NonFiniteGradientError(ValueError):
    """A gradient contains NaN or infinity.

    Args:
        index: Position of the batch among those given.
        tensor: First tensor whose gradient is not finite.
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


def fastest_method(source: GradientSource, batches: Sequence[Batch]) -> Method:
    """Time both methods on the same batches, after one untimed pass, and return the faster one.

    Args:
        source: The model, loss and weights.
        batches: A few batches of one size, as many as vmap takes at once.

    Returns:
        ``loop`` also if vmap cannot run the model or loss (data-dependent control flow,
        operations without a batching rule), or gives different rows.
    """
    seconds = _seconds(source, batches, "loop")
    try:
        # Under vmap the user's model and loss may raise any exception.
        if not _agree(source, batches[0]) or _seconds(source, batches, "vmap") >= seconds:
            return "loop"
    except Exception:
        return "loop"
    return "vmap"


def _agree(source: GradientSource, batch: Batch) -> bool:
    """Whether both methods give the same row: under vmap a model may silently differ."""
    loop, vmapped = (next(source.rows([batch], method)) for method in ("loop", "vmap"))
    return bool((loop - vmapped).norm() <= _ROUNDING * loop.norm())


def batches_at_once(samples_per_gradient: int) -> int:
    """Return how many batches of this size vmap processes at once."""
    return max(1, _SAMPLES_AT_ONCE // samples_per_gradient)


def _seconds(source: GradientSource, batches: Sequence[Batch], method: Method) -> float:
    for _ in range(2):
        start = time.perf_counter()
        for _ in source.rows(batches, method):
            pass
        seconds = time.perf_counter() - start
    return seconds


def _groups(batches: Iterable[Batch], at_once: int | None) -> Iterator[list[Batch]]:
    """Successive batches of the same shapes; padded ones may differ in length."""
    for _, alike in itertools.groupby(batches, key=_shapes):
        yield from _split(alike, at_once)


def _split(batches: Iterator[Batch], at_once: int | None) -> Iterator[list[Batch]]:
    for first in batches:
        wanted = at_once or batches_at_once(size(first[0]))
        yield [first, *itertools.islice(batches, wanted - 1)]


def _shapes(batch: Batch) -> list[tuple[str, Any]]:
    return [(name, tensor.shape) for name, tensor in named_tensors(batch)]
