"""What the model is trained for (the loss) and judged by (the metric)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mfac_compress.mfac.batch import Tree, map_tensors, size
from mfac_compress.pipeline.errors import EscapeError, InputError, describe
from mfac_compress.pipeline.inputs.callables import check_takes, resolve_callable, user_code
from mfac_compress.pipeline.inputs.correlation import (
    check_embeddings,
    check_scores,
    pairs_of,
    spearman,
)
from mfac_compress.pipeline.inputs.metric_values import UndefinedMetricError, metric_values
from mfac_compress.pipeline.inputs.task_checks import (
    IGNORED,
    check_accuracy,
    check_arguments,
    check_cross_entropy,
    check_finite,
    check_lone,
    check_mse,
    check_outputs,
)
from mfac_compress.pipeline.quoting import type_and_shape
from mfac_compress.pipeline.recipe.schema import RANGES, TaskSection

LOSSES = ("cross_entropy", "mse", "none")
METRICS = tuple(RANGES)


@dataclass(frozen=True)
class Task:
    """A loss and a metric, resolved from a recipe's ``task`` section.

    Attributes:
        loss_name: A built-in loss, ``none``, or the spec of the user's function.
        metric_name: A built-in metric, or the spec of the user's function.
        direction: Whether more of the metric is better.
        range: Least and greatest value of the metric; None where nothing is declared.
    """

    loss_name: str
    metric_name: str
    direction: Literal["maximize", "minimize"]
    range: tuple[float, float] | None
    _own_loss: Callable[..., Any] | None
    _own_metric: Callable[..., Any] | None

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

    def check_metric(self, outputs: Tree, targets: Tree) -> None:
        """Check that some samples fit a built-in metric, which need have no value for so few.

        Raises:
            InputError: If they do not.
        """
        if self.metric_name == "accuracy":
            self.evaluate(outputs, targets)
        elif self.metric_name == "spearman":
            check_scores(outputs, targets)
        elif self.metric_name == "spearman_cosine":
            check_embeddings(outputs, targets)

    def cases(self, outputs: Tree, targets: Tree) -> tuple[Tree, Tree]:
        """Reduce samples to the independent cases of which the metric is made.

        For ``spearman_cosine`` these are pairs of samples, with their cosine as output; for all
        other metrics they are the samples.

        Args:
            outputs: Of the model for the whole set, as arrays. Each ``[n, ...]``.
            targets: Likewise.
        Raises:
            InputError: If the samples are no such pairs, or their outputs are not finite.
        """
        if self.metric_name != "spearman_cosine":
            return outputs, targets
        check_embeddings(*map(_as_tensors, (outputs, targets)))
        check_finite(_as_tensors(outputs))
        return pairs_of(outputs, targets)

    def _own_loss_of(self, outputs: Tree, targets: Tree) -> Tensor:
        value = _call(self._own_loss, outputs, targets, key="task.loss", name=self.loss_name)
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise InputError(
                f"task.loss must return the batch's mean loss, a tensor of shape []. "
                f"{self.loss_name!r} returned {type_and_shape(value)}. Take its mean()."
            )
        return value

    def evaluate(self, outputs: Tree, targets: Tree) -> np.ndarray | float:
        """The metric, one value per case where it has them.

        The user's function works on copies: what it changes must not reach the next file.

        Args:
            outputs: Of :meth:`cases`, or as tensors. Each ``[n, ...]``.
            targets: Likewise.
        Returns:
            Values of shape ``[n]``, float64, whose mean is the metric; or one number for the
            whole set, where the user's metric has no values per sample.
        Raises:
            UndefinedMetricError: If the user's function raises, or a value or their mean is NaN or
                infinite.
            InputError: If outputs and targets do not fit the metric, the outputs are not finite,
                or the user's function ends the program, changes its arguments, or returns what are
                no numbers within ``task.range``.
        """
        given = _as_tensors(outputs), _as_tensors(targets)
        check_outputs(given[0])
        check_finite(given[0])
        if self._own_metric is None:
            return self.evaluate_rows(*given)
        copies = map_tensors(torch.clone, given)
        values = self.evaluate_rows(*copies)
        check_arguments(
            "task.metric",
            self.metric_name,
            outputs=(given[0], copies[0]),
            targets=(given[1], copies[1]),
        )
        return values

    def evaluate_rows(self, outputs: Tree, targets: Tree) -> np.ndarray | float:
        """:meth:`evaluate` on copies of checked rows, which nobody uses afterwards."""
        outputs, targets = _as_tensors(outputs), _as_tensors(targets)
        if self.metric_name == "accuracy":
            return _accuracy(outputs, targets)
        if self._own_metric is None:
            check_scores(outputs, targets)
            return spearman(outputs, targets)
        count = size(outputs)
        value = _call(
            self._own_metric,
            outputs,
            targets,
            key="task.metric",
            name=self.metric_name,
            error_class=UndefinedMetricError,
        )
        return metric_values(value, count, name=self.metric_name, range_=self.range)


def load_task(section: TaskSection, *, folder: Path) -> Task:
    """Resolve the loss and the metric of a recipe.

    Args:
        section: The recipe's ``task``.
        folder: Where relative file paths start: the recipe's folder.
    Returns:
        The task.
    Raises:
        InputError: If a name that is not built in cannot be imported.
    """
    range_ = RANGES.get(section.metric, section.range)
    return Task(
        loss_name=section.loss,
        metric_name=section.metric,
        direction=section.direction,
        range=range_,
        _own_loss=_resolve(section.loss, LOSSES, "task.loss", folder),
        _own_metric=_resolve(section.metric, METRICS, "task.metric", folder),
    )


def _resolve(
    name: str, built_in: tuple[str, ...], key: str, folder: Path
) -> Callable[..., Any] | None:
    if name in built_in:
        return None
    function = resolve_callable(name, key=key, folder=folder)
    check_takes(function, ("outputs", "targets"), key=key, name=name)
    return function


def _call(
    function: Callable[..., Any] | None,
    outputs: Tree,
    targets: Tree,
    *,
    key: str,
    name: str,
    error_class: type[InputError] = InputError,
) -> Any:
    assert function is not None
    given = f"outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}"
    # New dicts of the same tensors: taking a key out of one changes nothing for others.
    arguments = map_tensors(lambda tensor: tensor, (outputs, targets))
    try:
        with user_code():
            return function(*arguments)
    except Exception as error:
        raised = InputError if isinstance(error, EscapeError) else error_class
        raise raised(
            f"{key} must be a function of (outputs, targets). {name!r} raised {describe(error)} "
            f"for {given}."
        ) from error


def _as_tensors(tree: Tree) -> Tree:
    return map_tensors(torch.as_tensor, tree)


def _accuracy(outputs: Tree, targets: Tree) -> np.ndarray:
    """Share of the targets of each sample that are right, of those that are not ignored."""
    check_lone("task.metric accuracy", outputs, targets)
    check_accuracy(outputs, targets)
    counted = (targets != IGNORED).reshape(len(targets), -1)
    right = (outputs.argmax(1) == targets).reshape(len(targets), -1)  # never where ignored
    return (right.sum(1).double() / counted.sum(1)).cpu().numpy()
