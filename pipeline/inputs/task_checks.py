"""Whether outputs and targets fit a loss or a metric, in words that say what to do.

All raise :class:`~mfac_compress.pipeline.errors.InputError` where they do not.
"""

from typing import Any

import torch
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.quoting import type_and_shape


def check_arguments(key: str, name: str, **arguments: tuple[Tensor, Tensor]) -> None:
    """Check that the user's function has left its arguments as they were.

    Args:
        key: The recipe key of the function.
        name: Of the function.
        arguments: Each before the call and after it.
    """
    for argument, (before, after) in arguments.items():
        if not _is_same(before, after):
            raise InputError(
                f"{key} must not change its arguments. {name!r} wrote into {argument}. Work on a "
                f"copy: {argument} = {argument}.clone()."
            )


def _is_same(before: Tensor, after: Tensor) -> bool:
    """Whether two tensors hold the same bytes; NaN, which some targets hold, is equal to itself."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    first, second = (t.detach().contiguous().flatten().view(torch.uint8) for t in (before, after))
    return torch.equal(first, second)


def check_outputs(outputs: Any) -> None:
    """Check that the model returns one tensor ``[n, ...]``."""
    if not isinstance(outputs, Tensor) or outputs.ndim == 0:
        raise InputError(
            "The model must return one tensor of shape [n, ...]. "
            f"Got {type_and_shape(outputs)}. Wrap the model in model.factory so that it does."
        )


def check_cross_entropy(outputs: Tensor, targets: Tensor) -> None:
    """Check shapes, and that class numbers are the model's."""
    shapes = f"Got outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}."
    if outputs.ndim < 2:
        raise InputError(f"task.loss cross_entropy needs outputs [n, classes, ...]. {shapes}")
    if targets.is_floating_point():
        if targets.shape != outputs.shape:
            raise InputError(
                "task.loss cross_entropy needs float targets (probabilities) of the outputs' own "
                f"shape, or class numbers as integers. {shapes}{_whole(targets)}"
            )
        return
    if targets.shape != (outputs.shape[0], *outputs.shape[2:]):
        raise InputError(
            f"task.loss cross_entropy needs integer targets [n, ...] for outputs [n, classes, ...]."
            f" {shapes}"
        )
    _check_classes(targets, outputs.shape[1], "task.loss cross_entropy")


def _whole(targets: Tensor) -> str:
    if not bool((targets == targets.round()).all()):
        return ""
    return " They are whole numbers: save them as integers, with y.astype('int64')."


def _check_classes(targets: Tensor, classes: int, what: str) -> None:
    # On a GPU an out-of-range class would end the process with a device assertion.
    wrong = (targets < 0) | (targets >= classes)
    if bool(wrong.any()):
        raise InputError(
            f"{what} needs classes 0..{classes - 1}, the model has {classes} outputs. "
            f"Got class {int(targets[wrong][0])}. Renumber the targets or fix the model."
        )


def check_mse(outputs: Tensor, targets: Tensor) -> None:
    """Check that shapes are equal: broadcasting would give another loss."""
    if outputs.shape != targets.shape:
        raise InputError(
            "task.loss mse needs outputs and targets of one shape. "
            f"Got outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}. Reshape "
            "the targets."
        )


def check_finite(outputs: Tensor) -> None:
    """Check the outputs that a metric is taken of. Shape ``[n, ...]``."""
    finite = torch.isfinite(outputs).flatten(1).all(1) if outputs.ndim > 1 else outputs.isfinite()
    if not bool(finite.all()):
        bad = torch.nonzero(~finite).flatten().tolist()
        raise InputError(
            f"task.metric needs finite outputs of the model. {len(bad)} of {len(finite)} samples "
            f"have NaN or Inf, the first at positions {bad[:5]}. Look at those samples, or at the "
            "weights: a lower prune.sparsity or a larger fisher.damping changes them less."
        )


def check_accuracy(outputs: Tensor, targets: Tensor) -> None:
    """Check outputs ``[n, classes]`` and class numbers ``[n]``."""
    shapes = f"Got outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}."
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise InputError(
            f"task.metric accuracy needs outputs [n, classes] of two classes or more. {shapes} "
            "Give task.metric your own module:callable."
        )
    if targets.shape != outputs.shape[:1] or targets.is_floating_point():
        raise InputError(
            f"task.metric accuracy needs integer targets [n], one class number each. {shapes}"
        )
    _check_classes(targets, outputs.shape[1], "task.metric accuracy")
