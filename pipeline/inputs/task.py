"""What the model is trained for (the loss) and judged by (the metrics)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.mfac.batch import Tree, map_tensors
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.task_checks import (
    IGNORED,
    check_arguments,
    check_cross_entropy,
    check_lone,
    check_mse,
    check_outputs,
)
from mfac_compress.pipeline.inputs.task_function import (
    Function,
    call_function,
    resolve_function,
)
from mfac_compress.pipeline.inputs.task_metric import TaskMetric, load_metric
from mfac_compress.pipeline.quoting import type_and_shape
from mfac_compress.pipeline.recipe.schema import TaskSection

LOSSES = ("cross_entropy", "mse", "none")


@dataclass(frozen=True)
class Task:
    """A loss and metrics, resolved from a recipe's ``task`` section.

    Attributes:
        loss_name: A built-in loss, ``none``, or the spec of the user's function.
        metric: What the model is judged by.
        further_metrics: What else it is judged by, by the names of the recipe.
    """

    loss_name: str
    metric: TaskMetric
    further_metrics: Mapping[str, TaskMetric]
    _own_loss: Function | None

    @property
    def metrics(self) -> tuple[TaskMetric, ...]:
        """All of them, the first one first."""
        return self.metric, *self.further_metrics.values()

    @property
    def has_loss(self) -> bool:
        """Whether targets say what the outputs should be."""
        return self.loss_name != "none"

    def loss(self, outputs: Tree, targets: Tree, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean loss of a batch.

        Args:
            outputs: Of the model. Each tensor ``[n, ...]``.
            targets: Of the data, on the same device. Each tensor ``[n, ...]``.
            label_smoothing: In [0, 1), of ``cross_entropy`` only.
        Returns:
            A scalar tensor that gradients can be taken of.
        Raises:
            InputError: If outputs and targets do not fit the loss, or the user's function fails,
                returns no scalar tensor, or changes its arguments.
        """
        self.check(outputs, targets)
        if label_smoothing:
            if self.loss_name != "cross_entropy":
                raise InputError(
                    "recover.label_smoothing must be 0 unless task.loss is cross_entropy. "
                    f"Got {label_smoothing} with task.loss {self.loss_name!r}."
                )
            return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
        if self._own_loss is None:
            return self.unchecked_loss(outputs, targets)
        before = map_tensors(lambda tensor: tensor.detach().clone(), outputs)
        given = map_tensors(torch.clone, targets)
        value = self._own_loss_of(outputs, given)
        check_arguments("task.loss", self.loss_name, outputs=(before, outputs))
        check_arguments("task.loss", self.loss_name, targets=(targets, given))
        return value

    def check(self, outputs: Tree, targets: Tree) -> None:
        """Check that outputs and targets fit the built-in loss; only their shapes and classes.

        Raises:
            InputError: If they do not.
        """
        check_outputs(outputs)
        if self._own_loss is None and self.has_loss:
            check_lone(f"task.loss {self.loss_name}", outputs, targets)
        if self.loss_name == "cross_entropy":
            check_cross_entropy(outputs, targets)
        elif self.loss_name == "mse":
            check_mse(outputs, targets)

    def unchecked_loss(self, outputs: Tree, targets: Tree) -> Tensor:
        """:meth:`loss` without checks, which read values and so cannot be vectorised."""
        if self.loss_name == "cross_entropy":
            return F.cross_entropy(outputs, targets, ignore_index=IGNORED)
        if self.loss_name == "mse":
            return F.mse_loss(outputs, targets.to(outputs.dtype))
        return self._own_loss_of(outputs, map_tensors(torch.clone, targets))

    def _own_loss_of(self, outputs: Tree, targets: Tree) -> Tensor:
        value = call_function(
            self._own_loss, outputs, targets, key="task.loss", name=self.loss_name
        )
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise InputError(
                f"task.loss must return the batch's mean loss, a tensor of shape []. "
                f"{self.loss_name!r} returned {type_and_shape(value)}. Take its mean()."
            )
        return value


def load_task(section: TaskSection, *, folder: Path) -> Task:
    """Resolve the loss and the metrics of a recipe.

    Args:
        section: The recipe's ``task``.
        folder: Where relative file paths start: the recipe's folder.
    Returns:
        The task.
    Raises:
        InputError: If a name that is not built in cannot be imported.
    """
    return Task(
        loss_name=section.loss,
        metric=load_metric(section, section="task", folder=folder),
        further_metrics={
            name: load_metric(each, section=f"task.further_metrics.{name}", folder=folder)
            for name, each in section.further_metrics.items()
        },
        _own_loss=resolve_function(section.loss, built_in=LOSSES, key="task.loss", folder=folder),
    )
