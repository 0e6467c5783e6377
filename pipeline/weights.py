"""Which of a model's tensors must be finite, and are not."""

from torch import nn

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
