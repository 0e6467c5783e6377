"""Put a model into evaluation mode temporarily."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, device, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of a model into evaluation mode, then restore the mode of each.

    The flags are set directly, because ``eval()`` and ``train()`` raise on the module of an
    exported program, whose mode is fixed in its graph. Encoders run PyTorch's ordinary path, which
    the file has too: the fast one returns zeros for padding.

    Args:
        model: Changed while the context is open, and restored afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module, inputs: Tensor) -> device:
    """Return the device that a model computes on: its parameters', else the inputs'."""
    return next(model.parameters(), inputs).device
