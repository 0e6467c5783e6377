"""What a first recipe says for a model: what its layers, its samples and the memory allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from mfac_compress.pipeline.inputs.draw import Draws
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.layers import PruneTargets, Target
from mfac_compress.pipeline.inputs.memory import MemoryPlan, memory_plan
from mfac_compress.pipeline.inputs.whole_units import why_not_divided
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import FisherSection, PruneSection

FEW_GRADIENTS = {"num_gradients": 128, "samples_per_gradient": 2}
"""What small data has samples for."""
BLOCKS_OF_4 = {"block": 4, "axis": "outputs"}
_SMALL = 0.02
"""Share of the weights below which the first and the last layer are left out: they cost much, and
are worth nothing."""
_BLOCK_SIZES = (128, 64, 32, 16)

DATA = {
    "source": "arrays",
    "splits": {
        "calibration": {"path": "train.npz", "rows": [0, 5000]},
        "recovery": {"path": "train.npz", "rows": [5000, 10000]},
        "validation": {"path": "test.npz"},
    },
}
"""Stands for data that nobody has named."""


def base(factory: str | None) -> dict[str, Any]:
    """The recipe, but for its data, of a model of which nothing is known.

    Args:
        factory: The recipe's ``model.factory``; None for a model that needs none.
    """
    return {
        **({"model": {"factory": factory}} if factory else {}),
        "calibrate": dict(FEW_GRADIENTS),
        "fisher": {"damping": 1e-5, "block_size": 128},
        "prune": {"sparsity": 0.8, "steps": 4},
        "recover": {"epochs": 2, "lr": 0.01},
        "validate": {
            "gates": {"max_metric_drop": 0.02, "min_sparsity": 0.8, "max_parity_error": 1e-3}
        },
    }


def small_ends(targets: PruneTargets) -> list[str]:
    """Names of the first and the last layer, where they are a small part of several."""
    matched = targets.matched
    if len(matched) < 4:
        return []
    small = [end for end in (matched[0], matched[-1]) if end.weights < _SMALL * targets.weights]
    return [layer_of(end) for end in small]


def layer_of(target: Target) -> str:
    """The module that a weight is of, as a recipe names it."""
    return target.name.removesuffix(".weight")


def gradients_from(draws: Draws) -> dict[str, int]:
    """As many gradients, of as many samples, as there are calibration samples for."""
    pool = len(draws.pool)
    for samples in (8, 4, 2, 1):
        if pool // samples >= FEW_GRADIENTS["num_gradients"]:
            break
    return {"num_gradients": max(1, min(512, pool // samples)), "samples_per_gradient": samples}


@dataclass(frozen=True)
class Memory:
    """What inverses of several block sizes need.

    Args:
        plans: By block size.
    """

    plans: Mapping[int | Literal["full"], MemoryPlan]

    @classmethod
    def of(cls, targets: PruneTargets, num_gradients: int, device: torch.device) -> "Memory":
        """Look at what there is, and set it against what is needed."""
        sizes: Sequence[int | Literal["full"]] = (*_BLOCK_SIZES, "full")
        shapes = {
            size: FisherShape.of(targets, num_gradients, FisherSection(block_size=size))
            for size in sizes
        }
        return cls(
            {size: memory_plan([each], None, device, Ranks()) for size, each in shapes.items()}
        )

    @property
    def largest(self) -> int:
        """The largest block size that the memory holds; the smallest one where it holds none."""
        fitting = [size for size in _BLOCK_SIZES if self.plans[size].fits]
        return fitting[0] if fitting else _BLOCK_SIZES[-1]


def divided(module: nn.Module, targets: PruneTargets) -> float:
    """Share of the weights that blocks of four outputs divide."""
    section = PruneSection(sparsity=0.5, pattern=BLOCKS_OF_4)
    others = why_not_divided(module, section, targets.shapes)
    weights = sum(target.weights for target in targets.matched if target.name not in others)
    return weights / targets.weights
