"""The inverse of the damped Fisher.

It is made anew where it is needed: that takes less time than reading it back from disk would.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from mfac_compress.mfac import fisher as mfac
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.ranks import Ranks


@dataclass(frozen=True)
class Damping:
    """The λ of a damped Fisher, in a unit."""

    value: float
    unit: Literal["absolute", "mean_diagonal"]


def invert(fisher: mfac.Fisher, damping: Damping, ranks: Ranks) -> mfac.Inverse:
    """Damp and factor the Fisher, each process its columns.

    Raises:
        InputError: If the damping is too small to factor it, in any process.
    """
    scale = _mean_diagonal(fisher, ranks) if damping.unit == "mean_diagonal" else 1.0
    inverse, refusal = None, None
    try:
        inverse = mfac.invert(fisher, damping.value * scale)
    except ValueError as error:
        refusal = InputError(f"fisher.damping: {error}")
    # Processes that share a block refuse as one. With blocks of their own one may do so alone.
    with ranks.raise_on_every_rank():
        if refusal is not None:
            raise refusal
    assert inverse is not None
    return inverse


def _mean_diagonal(fisher: mfac.Fisher, ranks: Ranks) -> float:
    """Mean of the undamped Fisher's diagonal, over the columns of all processes."""
    sums = [fisher.mean_diagonal * fisher.partition.size, fisher.partition.size]
    trace, columns = ranks.all_reduce(torch.tensor(sums, dtype=torch.float64)).tolist()
    return trace / columns
