"""Metrics of files' outputs, the intervals of them and of their drops, and what chance gives."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isclose
from typing import Literal

import numpy as np

from mfac_compress.mfac.batch import Tree, map_tensors, size
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.metric_values import UndefinedMetricError
from mfac_compress.pipeline.inputs.task_checks import IGNORED
from mfac_compress.pipeline.inputs.task_metric import TaskMetric, copies_of
from mfac_compress.pipeline.statistics.per_sample import (
    MetricIntervals,
    per_sample_intervals,
)
from mfac_compress.pipeline.statistics.resampling import rows_of, shuffle, whole_set_intervals

_REPORT_CONFIDENCE = 0.95
_ROUNDING = 1e-6
"""Of the largest value: sums of several threads round in another order each time."""
_SHUFFLES = 19
"""Of which the best is beaten by chance in one of twenty cases."""

Values = np.ndarray | float
"""One for each sample, shape ``[n]``, or one for the whole set."""


@dataclass(frozen=True)
class Metric:
    """What files are judged by, on which samples, and what a model that knows nothing reaches."""

    name: str
    """``accuracy``, or ``module:callable`` of the recipe."""
    direction: Literal["maximize", "minimize"]
    """Whether more of it is better."""
    range: tuple[float, float] | None
    """Least and greatest value. null: not declared."""
    samples: int
    """Number of validation samples; of pairs, where the metric is one of pairs."""
    confidence: float
    """Of all intervals."""
    chance: float | None
    """What a model that knows nothing reaches: by the most frequent class, or with the targets
    shuffled. null: not known."""
    better_than_chance: bool | None
    """Whether the dense file is shown to be better than ``chance``."""
    takes_targets: bool | None = None
    """Whether shuffled targets change it for the dense file. null: not known."""


@dataclass(frozen=True)
class MetricDrop:
    """The metric of one file, and how much worse it is than that of the dense file."""

    value: float
    """The metric: the mean over the samples where it has one value for each."""
    interval: tuple[float, float] | None
    """Two-sided interval of ``value``. null: the samples show nothing; ``method`` says why, and a
    gate on it fails."""
    drop: float
    """How much worse than the dense file, in the metric's unit; negative where it is better."""
    drop_interval: tuple[float, float] | None
    """Two-sided paired interval of ``drop``. null: as for ``interval``, and for the dense file."""
    method: str
    """How the intervals were made, or why there are none."""
    assumed_range: tuple[float, float] | None
    """Range taken from the values met, where none is declared and the intervals need one."""
    spread: float | None
    """Standard deviation of one sample's share in ``drop``."""
    reach: float | None
    """Most that one sample is taken to be able to change the metric by, times ``samples``."""
    resamples_left_out: int
    """Of 2,000, on which a metric of the whole set had no value."""


Found = tuple[Metric, dict[str, MetricDrop]]
"""What a metric is, and what it is for each file."""


def compare_metrics(
    metrics: Sequence[TaskMetric],
    confidence: float | Literal["none"],
    outputs: Mapping[str, Tree],
    targets: Tree,
) -> list[Found]:
    """Judge files by several metrics of the same outputs.

    Args:
        metrics: What they are judged by.
        confidence: Of each interval; ``"none"`` for that of a report without gates on them.
        outputs: Of each file by its name, the dense one first. Trees of arrays ``[n, ...]``.
        targets: Tree of arrays ``[n, ...]``.
    Returns:
        What :func:`compare_metric` returns for each of them.
    Raises:
        InputError: If one of them has no finite value on these outputs, or depends on what another
            of them has seen last.
    """
    found = [compare_metric(metric, confidence, outputs, targets) for metric in metrics]
    own = [metric for metric in metrics if metric.is_own]
    if len(own) > 1:
        _check_apart(own, outputs, targets)
    return found


def _check_apart(metrics: Sequence[TaskMetric], outputs: Mapping[str, Tree], targets: Tree) -> None:
    """Check that no metric returns what another one has kept, which may be of any file.

    Each is the same for a file where all are asked of it in turn, and where one is asked of all.
    The cases of the user's own metrics are the samples.
    """
    in_turn = [[metric.evaluate(each, targets) for metric in metrics] for each in outputs.values()]
    # By number: an object that is called as a metric may have no hash, or another one each time.
    for number, metric in enumerate(metrics):
        for each, before in zip(outputs.values(), in_turn, strict=True):
            again = metric.evaluate(each, targets)
            if not _are_same(again, before[number]):
                raise _changed(metric, before[number], again)


def compare_metric(
    metric: TaskMetric,
    confidence: float | Literal["none"],
    outputs: Mapping[str, Tree],
    targets: Tree,
) -> Found:
    """Judge files by a metric on the same samples.

    Args:
        metric: What they are judged by.
        confidence: Of the intervals; ``"none"`` for that of a report without gates on them.
        outputs: Of each file by its name, the dense one first. Trees of arrays ``[n, ...]``.
        targets: Tree of arrays ``[n, ...]``.
    Returns:
        What the metric is, and what it is for each file.
    Raises:
        InputError: If the metric has no finite value on these outputs.
    """
    cases = {name: metric.cases(each, targets) for name, each in outputs.items()}
    outputs = {name: each for name, (each, _) in cases.items()}
    targets = next(of for _, of in cases.values())
    values = _evaluate(metric, outputs, targets)
    level = _REPORT_CONFIDENCE if confidence == "none" else confidence
    intervals = _intervals(metric, values, outputs, targets, level)
    dense, before = next(iter(values.items()))
    drops = {
        name: _metric_drop(metric, before, after, intervals[name]) for name, after in values.items()
    }
    drops[dense] = replace(drops[dense], drop_interval=None)
    chance, is_better, takes_targets = _chance(metric, outputs[dense], targets, drops[dense])
    return (
        Metric(
            name=metric.name,
            direction=metric.direction,
            range=metric.range,
            samples=size(targets),
            confidence=level,
            chance=chance,
            better_than_chance=is_better,
            takes_targets=takes_targets,
        ),
        drops,
    )


def _metric_drop(
    metric: TaskMetric, before: Values, after: Values, intervals: MetricIntervals
) -> MetricDrop:
    with np.errstate(all="ignore"):
        drop = metric.sign * float(np.mean(before - after))
    found = MetricDrop(
        value=float(np.mean(after)),
        interval=intervals.own,
        drop=drop,
        drop_interval=intervals.drop,
        method=intervals.method,
        assumed_range=intervals.assumed_range,
        spread=intervals.spread,
        reach=intervals.reach,
        resamples_left_out=intervals.resamples_left_out,
    )
    numbers = (drop, *(found.interval or ()), *(found.drop_interval or ()), found.reach or 0.0)
    if not np.isfinite(numbers).all():
        raise InputError(
            f"{metric.key} must return values of which differences and sums are finite. "
            f"{metric.name!r} has {np.mean(before):.3g} for the dense file and "
            f"{np.mean(after):.3g} for the sparse one. Return them in a larger unit."
        )
    return found


def _check_shapes(metric: TaskMetric, values: Mapping[str, Values]) -> None:
    shapes = {name: list(np.shape(each)) for name, each in values.items()}
    if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
        returned = ", ".join(f"shape {shape} for {name}" for name, shape in shapes.items())
        raise InputError(
            f"{metric.key} must return one value per sample for all files, or one number for all. "
            f"{metric.name!r} returned {returned}."
        )


def _evaluate(metric: TaskMetric, outputs: Mapping[str, Tree], targets: Tree) -> dict[str, Values]:
    """The metric of each file, which must be the same again, whatever was asked in between.

    A metric that sums up over its calls, as metric objects of libraries do, gives the second file a
    share in what the first one reached, and one that keeps the best so far gives it all of that.
    So the dense file comes last: a best so far is then another one for the files before it. Next
    come the targets shuffled, with which any file is bad: so is then a worst so far. At last come
    all files in the reverse of the first order: no state can come out the same by turns.

    What a metric may keep by the identity or the address of tensors is another trap, since freed
    ones are given out again. The first time all files have tensors of their own, which live on; the
    second time they have the same ones.

    Raises:
        InputError: If the metric returns something else for a file the second time.
    """
    own = outputs if metric.is_own else {}
    copies = {name: copies_of(each, targets) for name, each in own.items()}
    values = {
        name: metric.evaluate(outputs[name], targets, copies=copies.get(name))
        for name in reversed(outputs)
    }
    ordered = {name: values[name] for name in outputs}
    _check_shapes(metric, ordered)
    if not metric.is_own:
        return ordered
    shuffled = shuffle(targets)
    for _ in range(2):
        with suppress(InputError):  # it may have no value, or fit the targets' order only
            metric.evaluate(next(iter(outputs.values())), shuffled)
    shared = copies_of(next(iter(outputs.values())), targets)
    for name, before in ordered.items():
        again = metric.evaluate(outputs[name], targets, copies=shared)
        if not _are_same(again, before):
            raise _changed(metric, before, again)
    return ordered


def _changed(metric: TaskMetric, before: Values, again: Values) -> InputError:
    """Return the error for a metric that is not the same again."""
    return InputError(
        f"{metric.key} must return the same each time for the same outputs and targets. "
        f"{metric.name!r} returned {np.mean(before):.6g}, and then {np.mean(again):.6g}. Let it "
        "keep nothing between calls (a metric object is made anew or reset in each), share nothing "
        "with other metrics, and draw no random numbers, or with a seed of its own."
    )


def _are_same(again: Values, values: Values) -> bool:
    if np.shape(again) != np.shape(values):
        return False
    with np.errstate(all="ignore"):
        return np.allclose(again, values, rtol=0, atol=_ROUNDING * np.abs(values).max())


def _intervals(
    metric: TaskMetric,
    values: Mapping[str, Values],
    outputs: Mapping[str, Tree],
    targets: Tree,
    confidence: float,
) -> dict[str, MetricIntervals]:
    """Those of each file against the first."""
    sign, range_ = metric.sign, metric.range
    first = next(iter(values.values()))
    with np.errstate(all="ignore"):
        if isinstance(first, np.ndarray):
            return {
                name: per_sample_intervals(first, after, sign, range_, confidence)
                for name, after in values.items()
            }

        def measure(part: Tree, of: Tree) -> float | None:
            try:
                return float(np.mean(metric.evaluate_rows(part, of)))
            except UndefinedMetricError:
                return None

        found = whole_set_intervals(
            measure, list(outputs.values()), targets, sign, range_, confidence
        )
    return dict(zip(outputs, found, strict=True))


def _chance(
    metric: TaskMetric, outputs: Tree, targets: Tree, dense: MetricDrop
) -> tuple[float | None, bool | None, bool | None]:
    """What a model that knows nothing would reach, whether the dense file is shown to beat it, and
    whether shuffled targets change anything.

    For accuracy: always the most frequent class, or drawing one; the interval's lower end must be
    above. For other metrics: the best of 19 shuffles of the targets, which must be worse.
    """
    if metric.name == "accuracy":
        labels = targets[targets != IGNORED]
        shares = np.unique(labels, return_counts=True)[1] / max(1, labels.size)
        chance = max(shares.max(initial=0.0), 1 / outputs.shape[1])
        return float(chance), dense.interval is not None and bool(dense.interval[0] > chance), None
    sign, rng, n = metric.sign, np.random.default_rng(0), size(targets)
    shuffled: list[float] = []
    try:
        for _ in range(_SHUFFLES):
            given = map_tensors(np.copy, outputs), rows_of(targets, rng.permutation(n))
            shuffled.append(float(np.mean(metric.evaluate_rows(*given))))
    except InputError:  # a metric that fits the targets' order only
        return None, None, None
    best = max(shuffled, key=lambda value: sign * value)
    changes = any(not isclose(value, dense.value) for value in shuffled)
    return best, sign * dense.value > sign * best, changes
