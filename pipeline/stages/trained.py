"""What a training loop of the user's may not have done to the model that it was given."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mfac_compress.mfac.masking import revived
from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.quoting import listed, shown, type_and_shape
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.weights import not_finite

_LOOP = "recover.loop"


def check_trained(stage: str, before: State, after: State, module: nn.Module) -> nn.Module:
    """Check the tensors that a loop has left, and put them into a model that it never held.

    Args:
        stage: Name of the stage, for messages.
        before: The pruned model that the loop was given.
        after: The tensors that it left; masks are not looked at.
        module: A copy of the dense model, which gets the tensors.

    Returns:
        ``module``.

    Raises:
        StageError: If tensors are missing, new, of another shape or type, or no longer shared; if
            one that was frozen has changed; if a removed weight has come back; or if a value is
            not finite. The tensor is named.
    """
    found = dict(after.tensors)
    complaint = (
        _other_names(before.tensors, found)
        or _other_forms(before.tensors, found)
        or _torn(module, found)
        or _moved(module, before.tensors, found)
        or _revived(before.masks, found)
    )
    if complaint:
        raise StageError(stage, complaint)
    broken = not_finite(after.into(module))
    if broken:
        raise StageError(
            stage,
            f"weights must be finite after {_LOOP}. Got NaN or infinity in {listed(broken)}. Lower "
            "its learning rate, or let it return before that.",
        )
    return module


def _other_names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    missing, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    found = [
        f"{_named(names)} {what}" for what, names in (("new", new), ("gone", missing)) if names
    ]
    if not found:
        return None
    return (
        f"the model must have the same tensors after {_LOOP}. Got {' and '.join(found)}. Take away "
        "what it adds before it returns; layers cannot be replaced."
    )


def _other_forms(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    changed = [
        f"{shown(name)}: {type_and_shape(after[name])} for {type_and_shape(tensor)}"
        for name, tensor in before.items()
        if (tensor.shape, tensor.dtype) != (after[name].shape, after[name].dtype)
    ]
    if not changed:
        return None
    return f"tensors must keep their shapes and types in {_LOOP}. Got {listed(changed)}."


def _torn(module: nn.Module, after: Mapping[str, Tensor]) -> str | None:
    """Parameters that share their weights in the model, and no more."""
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name and not torch.equal(after[name], after[other]):
            return (
                f"parameters that share their weights must go on sharing them in {_LOOP}. Got "
                f"other values in {shown(name)} than in {shown(other)}. Change weights in place."
            )
    return None


def _moved(
    module: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> str | None:
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    moved = [name for name in frozen if not torch.equal(before[name], after[name])]
    if not moved:
        return None
    return (
        f"weights that are frozen (requires_grad is False) must stay as they are in {_LOOP}. Got "
        f"others in {_named(moved)}. Let model.factory leave them trainable, or do not train them."
    )


def _revived(masks: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    found = [f"{count:,} in {shown(name)}" for name, count in revived(after, masks).items()]
    if not found:
        return None
    return (
        f"removed weights must be zero after {_LOOP}. Got {listed(found)} that are not. Attach the "
        "handle to the optimizer before the first step: handle.attach(optimizer)."
    )


def _named(names: Iterable[str]) -> str:
    return listed([shown(name) for name in names])
