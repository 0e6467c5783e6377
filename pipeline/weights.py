"""A model's tensors: put into a module, and looked at for what is not finite."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_STATISTICS = {"running_mean", "running_var"}
_EXTRA_STATE = "_extra_state"
"""Buffers that PyTorch's normalisation layers estimate."""


def not_finite(module: nn.Module) -> list[str]:
    """Name what is not finite and ought to be.

    Parameters and batch norm's running statistics must be finite. Other buffers are the model's
    constants and may hold infinities, as a causal mask does, but not NaN.
    """
    broken = [name for name, value in module.named_parameters() if not bool(value.isfinite().all())]
    for name, value in module.named_buffers():
        is_statistic = name.rpartition(".")[2] in _STATISTICS
        sound = value.isfinite() if is_statistic else ~value.isnan()
        if not bool(sound.all()):
            broken.append(name)
    return broken


def versioned(tensors: Mapping[str, Any], own: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Return tensors with the versions that the modules of a model give to theirs.

    ``state_dict()`` notes them beside the tensors, and modules that have changed over the years, as
    torchvision's MNASNet, take no tensors without. A module of which one is missing gets none:
    batch norm then knows that a file without its counter is an old one.

    Args:
        tensors: The model's tensors, or some of them.
        own: What the model's ``state_dict()`` returns.
    """
    absent = {name for name in own.keys() - tensors.keys() if not name.endswith(_EXTRA_STATE)}
    missing = {name.rpartition(".")[0] for name in absent}
    versions = getattr(own, "_metadata", {})
    state = OrderedDict(tensors)
    state._metadata = {path: kept for path, kept in versions.items() if path not in missing}
    return state


def restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give parameters and buffers to a copy of the model they are of; returns ``module``.

    Extra state that is no tensor stays as it is: the checkpoint's is in every copy.
    """
    result = module.load_state_dict(versioned(tensors, module.state_dict()), strict=False)
    missing = [name for name in result.missing_keys if not name.endswith(_EXTRA_STATE)]
    assert not missing, missing
    assert not result.unexpected_keys, result.unexpected_keys
    return module
