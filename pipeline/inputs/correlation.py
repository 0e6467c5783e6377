"""Rank correlation of scores, and of the likeness of embeddings in pairs."""

import numpy as np
from scipy import stats

from mfac_compress.mfac.batch import Tree
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.metric_values import UndefinedMetricError
from mfac_compress.pipeline.inputs.task_checks import check_lone
from mfac_compress.pipeline.quoting import type_and_shape

FEWEST = 3
"""Cases: two are always in the same order or in reverse."""


def spearman(key: str, outputs: Tree, targets: Tree) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        key: The recipe key of the metric, for messages.
        outputs: Scores. Shape ``[n]``.
        targets: Shape ``[n]``.
    Raises:
        UndefinedMetricError: If all scores, or all targets, are equal.
    """
    ranks = [stats.rankdata(np.asarray(values, dtype=np.float64)) for values in (outputs, targets)]
    first, second = (each - each.mean() for each in ranks)
    scale = np.sqrt((first @ first) * (second @ second))
    if scale == 0:
        raise UndefinedMetricError(
            f"{key} spearman needs scores and targets that differ. All are equal on one side."
        )
    return float(np.clip(first @ second / scale, -1, 1))


def check_scores(key: str, outputs: Tree, targets: Tree) -> None:
    """Check that outputs and targets are one number for each sample.

    Raises:
        InputError: If they are not.
    """
    advice = " For embeddings of pairs use spearman_cosine."
    _check_axes(f"{key} spearman", outputs, targets, "[n]", advice)


def check_embeddings(key: str, outputs: Tree, targets: Tree) -> None:
    """Check that outputs are a vector, and targets a number, for each sample.

    Raises:
        InputError: If they are not.
    """
    _check_axes(f"{key} spearman_cosine", outputs, targets, "[n, d]")


def _check_axes(what: str, outputs: Tree, targets: Tree, form: str, advice: str = "") -> None:
    check_lone(what, outputs, targets)
    if outputs.ndim != form.count(",") + 1 or targets.ndim != 1:
        raise InputError(
            f"{what} needs outputs {form} and targets [n]. "
            f"Got outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}.{advice}"
        )


def check_count(key: str, samples: int) -> None:
    """Check that samples are enough whole pairs.

    Raises:
        InputError: If they are not.
    """
    if samples % 2 or samples < 2 * FEWEST:
        raise InputError(
            f"{key} spearman_cosine needs pairs: samples 0 and 1, 2 and 3, and so on, of "
            f"{FEWEST} pairs or more. Got {samples} samples. Set data.pairs: apart."
        )


def pairs_of(key: str, outputs: Tree, targets: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Reduce the embeddings of n pairs to their cosines.

    Args:
        key: The recipe key of the metric, for messages.
        outputs: Array. Shape ``[2n, d]``.
        targets: Array, equal in both rows of a pair. Shape ``[2n]``.
    Returns:
        Cosines and targets. Each of shape ``[n]``.
    Raises:
        InputError: If the rows are not pairs.
    """
    check_count(key, len(targets))
    outputs, targets = np.asarray(outputs, dtype=np.float64), np.asarray(targets)
    if not np.array_equal(targets[::2], targets[1::2]):
        raise InputError(
            f"{key} spearman_cosine needs the same target for both samples of a pair, which "
            "are 0 and 1, 2 and 3, and so on. They differ. Set data.pairs: apart."
        )
    lengths = np.linalg.norm(outputs, axis=1, keepdims=True)
    units = outputs / np.maximum(lengths, np.finfo(np.float64).tiny)
    return (units[::2] * units[1::2]).sum(1), targets[::2]
