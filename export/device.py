"""The device that a model computes on."""

from torch import Tensor, device, nn


def device_of(model: nn.Module, inputs: Tensor) -> device:
    """Return the device that a model computes on: its parameters', else the inputs'."""
    return next(model.parameters(), inputs).device
