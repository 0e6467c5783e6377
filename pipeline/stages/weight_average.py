"""The exponential moving average of a model's weights while it trains.

References:
    Tarvainen, Valpola (2017), Mean teachers are better role models.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mfac_compress.pipeline.stages.best_epoch import copy_into, copy_of


class WeightAverage:
    """a ← decay · a + (1 - decay) · w after each step, from a = w at the start.

    Weights that stay zero stay zero in it. Running statistics are averaged as well; of whole
    numbers, such as batch norm's count of batches, it has the newest.

    Args:
        tensors: Parameters and buffers of the model at the start.
        decay: In [0, 1).
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self._decay = decay
        self.values = copy_of(tensors)
        """The average."""

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the model's tensors after a step."""
        for name, tensor in tensors.items():
            value = self.values[name]
            if value.is_floating_point():
                value.lerp_(tensor, 1 - self._decay)
            else:
                value.copy_(tensor)

    @contextmanager
    def in_place(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the model's tensors have the average's values while the block runs."""
        trained = copy_of(tensors)
        copy_into(tensors, self.values)
        try:
            yield
        finally:
            copy_into(tensors, trained)
