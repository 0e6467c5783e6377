"""What a training makes smaller: what is computed of a batch's inputs, and the loss of that.

In two parts, because several processes share a batch: each computes its rows, and the loss is taken
of everyone's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree, call, channels_last, map_tensors, named_tensors

Loss = Callable[[Any, Tree], Tensor]
"""Of outputs and targets: the mean over a batch."""


class Objective(Protocol):
    """What a training makes smaller."""

    def compute(self, module: nn.Module, inputs: Tree) -> Any:
        """A tree of tensors ``[n, ...]``, of n samples."""

    def loss(self, computed: Any, targets: Tree) -> Tensor:
        """The mean over a batch, of what was computed of it."""

    def check(self, module: nn.Module, inputs: Tree) -> None:
        """Raise an error for a module in training mode of which this cannot be computed."""


@dataclass(frozen=True)
class Supervised:
    """The task's loss of the model's outputs.

    Args:
        task_loss: Of outputs and targets.
    """

    task_loss: Loss

    def compute(self, module: nn.Module, inputs: Tree) -> Any:
        return call(module, inputs)

    def loss(self, computed: Any, targets: Tree) -> Tensor:
        return self.task_loss(computed, targets)

    def check(self, module: nn.Module, inputs: Tree) -> None:
        pass


@dataclass(frozen=True)
class Accelerated:
    """An objective that is computed faster; its loss is taken in float32.

    Args:
        objective: What is made smaller.
        bfloat16: Compute in bfloat16 where PyTorch deems that safe.
        channels_last: Images have their channels side by side in memory.
    """

    objective: Objective
    bfloat16: bool = False
    channels_last: bool = False

    def compute(self, module: nn.Module, inputs: Tree) -> Any:
        if self.channels_last:
            inputs = map_tensors(channels_last, inputs)
        device = next(tensor.device.type for _, tensor in named_tensors(inputs))
        with torch.autocast(device, torch.bfloat16, enabled=self.bfloat16):
            return map_tensors(_widened, self.objective.compute(module, inputs))

    def loss(self, computed: Any, targets: Tree) -> Tensor:
        return self.objective.loss(computed, targets)

    def check(self, module: nn.Module, inputs: Tree) -> None:
        self.objective.check(module, inputs)


def _widened(value: Any) -> Any:
    narrow = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if narrow else value
