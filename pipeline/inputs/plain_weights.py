"""Weights that a layer computes from other tensors, folded into plain parameters.

Weight norm, spectral norm and the masks of ``torch.nn.utils.prune`` keep what they are made of as
parameters and compute the weight for each call. Such a weight can be neither pruned nor found in
the ONNX file, but in evaluation mode it is a constant, which PyTorch can put in their place.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code


class _Computed(NamedTuple):
    """A weight that is computed: its name in its layer, by what, and how to make it plain."""

    name: str
    by: str
    fold: Callable[[], object]


@torch.no_grad()
def fold_weights(module: nn.Module) -> dict[str, str]:
    """Replace each computed weight by its value in evaluation mode.

    Args:
        module: In evaluation mode. Changed in place.
    Returns:
        Name of each folded parameter to what computed it, such as ``weight_norm``. A parameter
        requires a gradient where one that it was made of did.
    Raises:
        InputError: If PyTorch cannot fold a weight, or its value is not finite.
    """
    folded = {}
    for owner, part in list(module.named_modules()):
        for weight in _computed(part):
            name = f"{owner}.{weight.name}" if owner else weight.name
            _fold(part, weight, name)
            folded[name] = weight.by
    return folded


def _computed(part: nn.Module) -> list[_Computed]:
    found = []
    if parametrize.is_parametrized(part):
        for name, steps in part.parametrizations.items():
            by = ", ".join(type(step).__name__.strip("_") for step in steps)
            found.append(
                _Computed(
                    name,
                    f"the parametrization {by}",
                    lambda name=name: parametrize.remove_parametrizations(part, name),
                )
            )
    for hook in list(part._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            fold = lambda name=hook.name: remove_weight_norm(part, name)  # noqa: E731
            found.append(_Computed(hook.name, "weight_norm", fold))
        elif isinstance(hook, SpectralNorm):
            fold = lambda name=hook.name: _remove_spectral_norm(part, name)  # noqa: E731
            found.append(_Computed(hook.name, "spectral_norm", fold))
        elif isinstance(hook, prune.BasePruningMethod):
            name = hook._tensor_name
            fold = lambda name=name: prune.remove(part, name)  # noqa: E731
            found.append(_Computed(name, "torch.nn.utils.prune", fold))
    return found


def _fold(part: nn.Module, weight: _Computed, name: str) -> None:
    was_trained = any(source.requires_grad for source in _sources(part, weight.name))
    try:
        with user_code():  # a parametrization may be of the user's own
            weight.fold()
            value = getattr(part, weight.name)
    except Exception as error:
        raise InputError(
            f"The model's {name} is computed by {weight.by}, and must be one that PyTorch can "
            f"replace by its value. It raised {describe(error)}. Do so in "
            "model.factory, after the weights are loaded, or build the layer without it."
        ) from error
    if not bool(value.isfinite().all()):
        raise InputError(
            f"The model's {name} must be finite. Got NaN or Inf where {weight.by} computes it. "
            "Take an earlier checkpoint."
        )
    if not isinstance(value, nn.Parameter):
        delattr(part, weight.name)
        part.register_parameter(weight.name, nn.Parameter(value.detach()))
    getattr(part, weight.name).requires_grad_(was_trained)


def _remove_spectral_norm(part: nn.Module, name: str) -> None:
    """Remove spectral norm, and the hook that PyTorch leaves, which asks state dicts for it."""
    remove_spectral_norm(part, name)
    hooks = part._load_state_dict_pre_hooks
    for key, wrapped in list(hooks.items()):
        hook = getattr(wrapped, "hook", wrapped)
        if isinstance(hook, SpectralNormLoadStateDictPreHook) and hook.fn.name == name:
            del hooks[key]


def _sources(part: nn.Module, name: str) -> list[Tensor]:
    """What a weight is computed from."""
    if parametrize.is_parametrized(part, name):
        return list(part.parametrizations[name].parameters())
    made_of = (f"{name}_orig", f"{name}_g", f"{name}_v")
    return [part._parameters[key] for key in made_of if key in part._parameters]
