"""A model's tensors: put into a module, and looked at for what is not finite."""

from collections.abc import Mapping

from torch import Tensor, nn

_STATISTICS = {"running_mean", "running_var"}
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


def restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give parameters and buffers to a copy of the model they are of; returns ``module``.

    Extra state that is no tensor stays as it is: the checkpoint's is in every copy.
    """
    result = module.load_state_dict(dict(tensors), strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("_extra_state")]
    assert not missing, missing
    assert not result.unexpected_keys, result.unexpected_keys
    return module
