"""Stage 2: the inverse of the damped Fisher.

It is made anew where it is needed: that takes less time than reading it back from disk would.
"""

import torch

from mfac_compress.mfac import InverseFisher
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.stages.calibrate import Fisher


def invert(context: RunContext, fisher: Fisher) -> InverseFisher:
    """Damp and factor the Fisher, each process its columns.

    Raises:
        InputError: If the damping is too small to factor it, in any process.
    """
    section = context.recipe.fisher
    scale = _mean_diagonal(context, fisher) if section.damping_unit == "mean_diagonal" else 1.0
    inverse, refusal = None, None
    try:
        inverse = fisher.invert(section.damping * scale)
    except ValueError as error:
        refusal = InputError(f"fisher.damping: {error}")
    # Processes that share a block refuse as one. With blocks of their own one may do so alone.
    with context.ranks.raise_on_every_rank():
        if refusal is not None:
            raise refusal
    assert inverse is not None
    return inverse


def _mean_diagonal(context: RunContext, fisher: Fisher) -> float:
    """Mean of the undamped Fisher's diagonal, over the columns of all processes."""
    trace = torch.tensor(fisher.mean_diagonal * fisher.partition.size, dtype=torch.float64)
    return context.ranks.all_reduce(trace).item() / context.targets.weights
