"""The metric of two files' outputs, the intervals of it and of its drop, and what chance gives."""

from typing import Any, Literal

import numpy as np

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.metric_values import UndefinedMetricError
from mfac_compress.pipeline.inputs.task import Task
from mfac_compress.pipeline.verdict.resampling import whole_set_intervals
from mfac_compress.pipeline.verdict.statistics import (
    Ends,
    MetricIntervals,
    per_sample_intervals,
)

_REPORT_CONFIDENCE = 0.95
_ROUNDING = 1e-6
"""Of the largest value: sums of several threads round in another order each time."""
_SHUFFLES = 19
"""Of which the best is beaten by chance in one of twenty cases."""


def compare_metric(
    task: Task,
    confidence: float | Literal["none"],
    dense: np.ndarray,
    sparse: np.ndarray,
    targets: np.ndarray,
) -> dict[str, Any]:
    """Judge two files by the metric on the same samples.

    Args:
        task: Has the metric.
        confidence: Of the intervals; ``none`` for the report's own.
        dense: Outputs of the dense file. Shape ``[n, ...]``.
        sparse: Of the sparse file. Shape ``[n, ...]``.
        targets: Shape ``[n, ...]``.
    Returns:
        The fields of :class:`mfac_compress.pipeline.verdict.report.MetricResult`.
    Raises:
        InputError: If the metric has no finite value on these outputs.
    """
    before, after = (task.evaluate(outputs, targets) for outputs in (dense, sparse))
    if np.shape(before) != np.shape(after):
        raise InputError(
            "task.metric must return one value per sample for both files, or one number for both. "
            f"{task.metric_name!r} returned shape {list(np.shape(before))} for the dense file and "
            f"{list(np.shape(after))} for the sparse one."
        )
    _check_repeats(task, ((sparse, after), (dense, before)), targets)
    sign = 1 if task.direction == "maximize" else -1
    confidence = _REPORT_CONFIDENCE if confidence == "none" else confidence
    with np.errstate(all="ignore"):
        drop = sign * float(np.mean(before - after))
        intervals = _intervals(task, (before, after), (dense, sparse), targets, sign, confidence)
    chance, is_better = _chance(task, dense, targets, float(np.mean(before)), intervals.dense)
    ends = (intervals.dense, intervals.sparse, intervals.drop)
    numbers = (drop, *(end for pair in ends if pair for end in pair), intervals.reach or 0.0)
    if not np.isfinite(numbers).all():
        raise InputError(
            "task.metric must return values of which differences and sums are finite. "
            f"{task.metric_name!r} has {np.mean(before):.3g} for the dense file and "
            f"{np.mean(after):.3g} for the sparse one. Return them in a larger unit."
        )
    return {
        "name": task.metric_name,
        "direction": task.direction,
        "dense": float(np.mean(before)),
        "sparse": float(np.mean(after)),
        "drop": drop,
        "interval": intervals.drop,
        "dense_interval": intervals.dense,
        "sparse_interval": intervals.sparse,
        "confidence": confidence,
        "method": intervals.method,
        "range": task.range,
        "assumed_range": intervals.assumed_range,
        "spread": intervals.spread,
        "reach": intervals.reach,
        "samples": len(targets),
        "resamples_left_out": intervals.resamples_left_out,
        "chance": chance,
        "better_than_chance": is_better,
    }


def _check_repeats(
    task: Task,
    measured: tuple[tuple[np.ndarray, np.ndarray | float], ...],
    targets: np.ndarray,
) -> None:
    """Check that the metric returns the same again, whatever it was asked before.

    One that sums up over its calls, as metric objects of libraries do, gives the second file a
    share in what the first one reached.

    Args:
        task: Has the metric.
        measured: Outputs and what the metric returned for them, the last ones first: in another
            order than at first, so that no state can come out the same by turns.
        targets: Shape ``[n, ...]``.
    Raises:
        InputError: If it does not.
    """
    if task.metric_name == "accuracy":
        return
    for outputs, values in measured:
        again = task.evaluate(outputs, targets)
        if not _are_same(again, values):
            raise InputError(
                "task.metric must return the same each time for the same outputs and targets. "
                f"{task.metric_name!r} returned {np.mean(values):.6g}, and then "
                f"{np.mean(again):.6g}. Let it keep nothing between calls (a metric object is made "
                "anew or reset in each), and draw no random numbers, or with a seed of its own."
            )


def _are_same(again: np.ndarray | float, values: np.ndarray | float) -> bool:
    if np.shape(again) != np.shape(values):
        return False
    with np.errstate(all="ignore"):
        return np.allclose(again, values, rtol=0, atol=_ROUNDING * np.abs(values).max())


def _intervals(
    task: Task,
    values: tuple[np.ndarray | float, np.ndarray | float],
    outputs: tuple[np.ndarray, np.ndarray],
    targets: np.ndarray,
    sign: int,
    confidence: float,
) -> MetricIntervals:
    if isinstance(values[0], np.ndarray):
        return per_sample_intervals(*values, sign, task.range, confidence)

    def measure(part: np.ndarray, of: np.ndarray) -> float | None:
        try:
            return float(np.mean(task.evaluate_rows(part, of)))
        except UndefinedMetricError:
            return None

    return whole_set_intervals(measure, *outputs, targets, sign, task.range, confidence)


def _chance(
    task: Task, outputs: np.ndarray, targets: np.ndarray, dense: float, interval: Ends | None
) -> tuple[float | None, bool | None]:
    """What a model that knows nothing would reach, and whether the dense file is shown to beat it.

    For accuracy: always the most frequent class, or drawing one; the interval's lower end must be
    above. For other metrics: the best of 19 shuffles of the targets, which must be worse.
    """
    if task.metric_name == "accuracy":
        chance = max(
            np.unique(targets, return_counts=True)[1].max() / len(targets), 1 / outputs.shape[1]
        )
        return float(chance), interval is not None and bool(interval[0] > chance)
    sign, rng = 1 if task.direction == "maximize" else -1, np.random.default_rng(0)
    try:
        shuffled = [
            float(np.mean(task.evaluate_rows(outputs.copy(), rng.permutation(targets))))
            for _ in range(_SHUFFLES)
        ]
    except InputError:  # a metric that fits the targets' order only
        return None, None
    best = max(shuffled, key=lambda value: sign * value)
    return best, sign * dense > sign * best
