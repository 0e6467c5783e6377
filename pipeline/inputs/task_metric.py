"""A metric that files are judged by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mfac_compress.mfac.batch import Tree, map_tensors, size
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
    check_finite,
    check_outputs,
)
from mfac_compress.pipeline.inputs.task_function import (
    Function,
    call_function,
    resolve_function,
)
from mfac_compress.pipeline.recipe.schema import RANGES, MetricSection


@dataclass(frozen=True)
class TaskMetric:
    """A metric, resolved from a section of a recipe.

    Attributes:
        section: Key of that section: ``task``, or ``task.further_metrics.NAME``.
        name: A built-in metric, or the spec of the user's function.
        direction: Whether more of the metric is better.
        range: Least and greatest value; None where nothing is declared.
    """

    section: str
    name: str
    direction: Literal["maximize", "minimize"]
    range: tuple[float, float] | None
    _function: Function | None

    @property
    def key(self) -> str:
        """The recipe key that names it."""
        return f"{self.section}.metric"

    @property
    def is_own(self) -> bool:
        """Whether it is the user's function."""
        return self._function is not None

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.direction == "maximize" else -1

    def check(self, outputs: Tree, targets: Tree) -> None:
        """Check that some samples fit a built-in metric, which need have no value for so few.

        Raises:
            InputError: If they do not.
        """
        if self.name == "accuracy":
            self.evaluate(outputs, targets)
        elif self.name == "spearman":
            check_scores(self.key, outputs, targets)
        elif self.name == "spearman_cosine":
            check_embeddings(self.key, outputs, targets)

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
        if self.name != "spearman_cosine":
            return outputs, targets
        check_embeddings(self.key, *map(_as_tensors, (outputs, targets)))
        check_finite(self.key, _as_tensors(outputs))
        return pairs_of(self.key, outputs, targets)

    def evaluate(
        self, outputs: Tree, targets: Tree, *, copies: Tree | None = None
    ) -> np.ndarray | float:
        """The metric, one value per case where it has them.

        The user's function works on copies: what it changes must not reach the next file.

        Args:
            outputs: Of :meth:`cases`, or as tensors. Each ``[n, ...]``.
            targets: Likewise.
            copies: Of :func:`copies_of`, which are overwritten; None for new ones.
        Returns:
            Values of shape ``[n]``, float64, whose mean is the metric; or one number for the
            whole set, where the user's metric has no values per sample.
        Raises:
            UndefinedMetricError: If the user's function raises, or a value or their mean is NaN or
                infinite.
            InputError: If outputs and targets do not fit the metric, the outputs are not finite,
                or the user's function ends the program, changes its arguments, or returns what are
                no numbers within the declared range.
        """
        given = _as_tensors(outputs), _as_tensors(targets)
        check_outputs(given[0])
        check_finite(self.key, given[0])
        if not self.is_own:
            return self.evaluate_rows(*given)
        if copies is None:
            copies = copies_of(*given)
        else:
            map_tensors(lambda copy, of: copy.copy_(of), copies, given)
        values = self.evaluate_rows(*copies)
        check_arguments(
            self.key,
            self.name,
            outputs=(given[0], copies[0]),
            targets=(given[1], copies[1]),
        )
        return values

    def evaluate_rows(self, outputs: Tree, targets: Tree) -> np.ndarray | float:
        """:meth:`evaluate` on copies of checked rows, which nobody uses afterwards."""
        outputs, targets = _as_tensors(outputs), _as_tensors(targets)
        if self.name == "accuracy":
            return _accuracy(self.key, outputs, targets)
        if not self.is_own:
            check_scores(self.key, outputs, targets)
            return spearman(self.key, outputs, targets)
        value = call_function(
            self._function,
            outputs,
            targets,
            key=self.key,
            name=self.name,
            error_class=UndefinedMetricError,
        )
        return metric_values(
            value, size(outputs), section=self.section, name=self.name, range_=self.range
        )


def load_metric(declared: MetricSection, *, section: str, folder: Path) -> TaskMetric:
    """Resolve a metric of a recipe.

    Args:
        declared: The section.
        section: Its key.
        folder: Where relative file paths start: the recipe's folder.
    Raises:
        InputError: If a name that is not built in cannot be imported.
    """
    return TaskMetric(
        section=section,
        name=declared.metric,
        direction=declared.direction,
        range=RANGES.get(declared.metric, declared.range),
        _function=resolve_function(
            declared.metric, built_in=RANGES, key=f"{section}.metric", folder=folder
        ),
    )


def copies_of(outputs: Tree, targets: Tree) -> tuple[Tree, Tree]:
    """Copy outputs and targets, as tensors."""
    return map_tensors(torch.clone, (_as_tensors(outputs), _as_tensors(targets)))


def _as_tensors(tree: Tree) -> Tree:
    return map_tensors(torch.as_tensor, tree)


def _accuracy(key: str, outputs: Tree, targets: Tree) -> np.ndarray:
    """Share of the targets of each sample that are right, of those that are not ignored."""
    check_accuracy(key, outputs, targets)
    counted = (targets != IGNORED).reshape(len(targets), -1)
    right = (outputs.argmax(1) == targets).reshape(len(targets), -1)  # never where ignored
    return (right.sum(1).double() / counted.sum(1)).cpu().numpy()
