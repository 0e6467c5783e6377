"""What a training makes smaller: what is computed of a batch's inputs, and the loss of that.

In two parts, because several processes share a batch: each computes its rows, and the loss is taken
of everyone's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree, call

Loss = Callable[[Any, Tree], Tensor]
"""Of outputs and targets: the mean over a batch."""


class Objective(Protocol):
    """What a training makes smaller."""

    def compute(self, module: nn.Module, inputs: Tree) -> Any:
        """A tree of tensors ``[n, ...]``, of n samples."""

    def loss(self, computed: Any, targets: Tree) -> Tensor:
        """The mean over a batch, of what was computed of it."""


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
