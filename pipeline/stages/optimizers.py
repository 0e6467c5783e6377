"""The optimizers of a recipe, and the course of their learning rate."""

import math
from collections.abc import Callable

import torch
from torch import nn

from mfac_compress.mfac.optimizer import MFAC
from mfac_compress.pipeline.recipe.schema import RecoverSection


def optimizer_of(section: RecoverSection, module: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer of all parameters that require a gradient."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if section.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=section.lr, weight_decay=section.weight_decay)
    if section.optimizer == "mfac":
        return MFAC(
            parameters,
            lr=section.lr,
            num_gradients=section.window.num_gradients,
            damping=section.window.damping,
            momentum=section.momentum,
            weight_decay=section.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=section.lr,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
    )


def lr_curve(section: RecoverSection, steps: int) -> Callable[[int], float]:
    """Share of the learning rate at each step; falls to zero, unless constant."""
    curves: dict[str, Callable[[int], float]] = {
        "cosine": lambda step: (1 + math.cos(math.pi * step / steps)) / 2,
        "linear": lambda step: 1 - step / steps,
        "constant": lambda step: 1.0,
    }
    return curves[section.schedule]
