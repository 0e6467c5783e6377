"""The learning rate `auto`: a few are tried for a few steps each, from the same start.

References:
    Smith (2017), Cyclical learning rates for training neural networks, section 3.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan

from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.stages.divergence import is_nearer, reported

_RATES = {
    "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "mfac": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}
STEPS = 50
"""Of each rate."""


@dataclass(frozen=True)
class Tried:
    """A learning rate that was tried."""

    lr: float
    """Learning rate at the start."""
    divergence: float | None
    """From the dense model's outputs on held-out samples after the few steps. null: outputs were
    not finite."""


def try_rates(
    section: RecoverSection,
    divergence_after: Callable[[RecoverSection], float],
    progress: Progress,
) -> tuple[float, tuple[Tried, ...]]:
    """Choose a learning rate.

    Args:
        section: How to train.
        divergence_after: Of the model after one epoch of a few steps of such a training.
        progress: Shows the rates.

    Returns:
        The best rate, and all that were tried.

    Raises:
        StageError: If none of them leaves finite outputs.
    """
    rates, tried = _RATES[section.optimizer], []
    best, nearest = nan, nan
    for number, rate in enumerate(rates):
        progress.step(f"learning rate {rate:g}", number, len(rates))
        change = {"lr": rate, "epochs": 1, "keep": "last", "patience": None, "ema": None}
        divergence = divergence_after(section.model_copy(update=change))
        if is_nearer(divergence, nearest):
            best, nearest = rate, divergence
        tried.append(Tried(rate, reported(divergence)))
    if not isfinite(best):
        raise StageError(
            "recover",
            f"a learning rate must leave finite outputs. None of {', '.join(map(str, rates))} did. "
            "Give recover.lr a lower one.",
        )
    return best, tuple(tried)
