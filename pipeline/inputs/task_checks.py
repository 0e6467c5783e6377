"""Whether outputs and targets fit a loss or a metric, in words that say what to do.

All raise :class:`~mfac_compress.pipeline.errors.InputError` where they do not.
"""

from typing import Any

import torch
from torch import Tensor

from mfac_compress.mfac.batch import Tree, named_tensors
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.quoting import listed, type_and_shape

IGNORED = -100
"""Class number of targets that count for nothing, PyTorch's default."""


def check_arguments(key: str, name: str, **arguments: tuple[Tree, Tree]) -> None:
    """Check that the user's function has left its arguments as they were.

    Args:
        key: The recipe key of the function.
        name: Of the function.
        arguments: Each before the call and after it.
    """
    for argument, trees in arguments.items():
        pairs = zip(*map(named_tensors, trees), strict=True)
        for (place, before), (_, after) in pairs:
            if not _is_same(before, after):
                changed = f"{argument}.{place}" if place else argument
                raise InputError(
                    f"{key} must not change its arguments. {name!r} wrote into {changed}. Work on "
                    "a copy: clone() the tensor."
                )


def _is_same(before: Tensor, after: Tensor) -> bool:
    """Whether two tensors hold the same bytes; NaN, which some targets hold, is equal to itself."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    first, second = (t.detach().contiguous().flatten().view(torch.uint8) for t in (before, after))
    return torch.equal(first, second)


def check_outputs(outputs: Any) -> None:
    """Check that the model returns tensors ``[n, ...]``."""
    tensors = [tensor for _, tensor in named_tensors(outputs)]
    if not tensors or not all(isinstance(t, Tensor) and t.ndim for t in tensors):
        raise InputError(
            f"The model must return tensors of shape [n, ...]. Got {type_and_shape(outputs)}. Wrap "
            "the model in model.factory so that it does, or name the output with model.output."
        )


def check_lone(what: str, outputs: Tree, targets: Tree) -> None:
    """Check that what is built in gets one tensor of outputs, and one of targets.

    Args:
        what: Which loss or metric, for example ``task.loss mse``.
        outputs: Of the model.
        targets: Of the data.
    """
    if not isinstance(outputs, Tensor):
        names = listed([name for name, _ in named_tensors(outputs)])
        raise InputError(
            f"{what} needs one tensor as output of the model. Got {type_and_shape(outputs)}. Set "
            f"model.output to one of {names}, or use a module:callable of your own."
        )
    if not isinstance(targets, Tensor):
        raise InputError(
            f"{what} needs one tensor as target. Got {type_and_shape(targets)}. Let the data give "
            "one, or use a module:callable of your own."
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
            f" {shapes}{_classes_last(outputs, targets)}"
        )
    _check_classes(targets, outputs.shape[1], "task.loss cross_entropy")


def _classes_last(outputs: Tensor, targets: Tensor) -> str:
    if outputs.ndim < 3 or targets.shape != outputs.shape[:-1]:
        return ""
    return (
        " Are the classes the last axis? Let the model return outputs.movedim(-1, 1), in a wrapper "
        "that model.factory makes."
    )


def _whole(targets: Tensor) -> str:
    if not bool((targets == targets.round()).all()):
        return ""
    return " They are whole numbers: save them as integers, with y.astype('int64')."


def _check_classes(targets: Tensor, classes: int, what: str) -> None:
    # On a GPU an out-of-range class would end the process with a device assertion.
    counted = targets != IGNORED
    wrong = counted & ((targets < 0) | (targets >= classes))
    if bool(wrong.any()):
        raise InputError(
            f"{what} needs classes 0..{classes - 1}, the model has {classes} outputs. "
            f"Got class {int(targets[wrong][0])}. Renumber the targets or fix the model."
        )
    # The loss of such a sample alone would be NaN, and its accuracy undefined.
    empty = torch.nonzero(~counted.reshape(len(targets), -1).any(1)).flatten().tolist()
    if empty:
        raise InputError(
            f"{what} needs a target in every sample that is not {IGNORED}, which is ignored. "
            f"{len(empty)} of {len(targets)} samples of a batch have none, the first at position "
            f"{empty[0]}. Remove such samples."
        )


def check_mse(outputs: Tensor, targets: Tensor) -> None:
    """Check that shapes are equal: broadcasting would give another loss."""
    if outputs.shape != targets.shape:
        raise InputError(
            "task.loss mse needs outputs and targets of one shape. "
            f"Got outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}. Reshape "
            "the targets."
        )


def check_finite(key: str, outputs: Tree) -> None:
    """Check the outputs that the metric of a recipe key is taken of. Shapes ``[n, ...]``."""
    for name, tensor in named_tensors(outputs):
        finite = torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
        if not bool(finite.all()):
            bad = torch.nonzero(~finite).flatten().tolist()
            place = f" in {name}" if name else ""
            raise InputError(
                f"{key} needs finite outputs of the model. {len(bad)} of {len(finite)} "
                f"samples have NaN or Inf{place}, the first at positions {bad[:5]}. Look at those "
                "samples, or at the weights: a lower prune.sparsity or a larger fisher.damping "
                "changes them less."
            )


def check_accuracy(key: str, outputs: Tree, targets: Tree) -> None:
    """Check outputs ``[n, classes, ...]`` and class numbers ``[n, ...]``.

    Args:
        key: The recipe key of the metric.
        outputs: Of the model.
        targets: Of the data.
    """
    what = f"{key} accuracy"
    check_lone(what, outputs, targets)
    shapes = f"Got outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}."
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise InputError(
            f"{what} needs outputs [n, classes, ...] of two classes or more. {shapes} Give {key} "
            "your own module:callable."
        )
    if targets.shape != (outputs.shape[0], *outputs.shape[2:]) or targets.is_floating_point():
        raise InputError(
            f"{what} needs integer targets [n, ...], one class number for each output "
            f"[n, classes, ...]. {shapes}{_classes_last(outputs, targets)}"
        )
    _check_classes(targets, outputs.shape[1], what)
