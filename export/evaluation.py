"""Put a model in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, device, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold every module of a model in evaluation mode, then give each its own mode back.

    The flags are set directly, because ``eval()`` and ``train()`` raise on the module of an
    exported program, whose mode is fixed in its graph.

    Args:
        model: Changed while the context is open, and as before afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module, inputs: Tensor) -> device:
    """Name the device that a model computes on: its parameters', else the inputs'."""
    return next(model.parameters(), inputs).device
