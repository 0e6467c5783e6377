"""The increase of the loss if a unit of weights is removed."""

from typing import Literal

from torch import Tensor

from mfac_compress.mfac.block_inverse import BlockInverse
from mfac_compress.mfac.fisher import Inverse
from mfac_compress.mfac.sequential import sequential_saliency
from mfac_compress.mfac.units import Units

Selection = Literal["independent", "sequential"]


def unit_costs(
    weights: Tensor,
    inverse: Inverse,
    units: Units,
    keep: Tensor,
    selection: Selection | None = None,
) -> Tensor:
    """Return the increase of the quadratic loss by the removal of each unit, the others adjusted.

    ``independent`` takes each unit as the first to go: ρ_q = w_q² / (2 [F⁻¹]_qq).
    ``sequential`` takes each at its turn; see :mod:`~mfac_compress.mfac.sequential`.

    Args:
        weights: w. Shape ``[d]``.
        inverse: F⁻¹.
        units: What goes together.
        keep: True = kept so far; what has gone may cost anything. Shape ``[d]``.
        selection: Which of the two; None for ``sequential`` where the inverse is by blocks.

    Returns:
        Shape ``[u]``, dtype of ``weights``.

    Raises:
        ValueError: If ``sequential`` is asked for an inverse that is not given by blocks.

    References:
        Frantar, Kurtic, Alistarh (2021), M-FAC, equation 1.
    """
    has_blocks = isinstance(inverse, BlockInverse)
    if selection is None:
        selection = "sequential" if has_blocks else "independent"
    if selection == "independent":
        return weights.square() / (2 * inverse.diagonal().to(weights))
    if not has_blocks:
        raise ValueError(
            "selection 'sequential' needs blocks of the Fisher no larger than the number of "
            f"gradients. Got blocks of up to {inverse.partition.largest} and "
            f"{inverse.num_gradients} gradients. Use smaller blocks, or 'independent'."
        )
    return sequential_saliency(weights, keep, inverse)


def magnitude_costs(weights: Tensor, units: Units) -> Tensor:
    """Σ w² over each unit. Shape ``[d]`` -> ``[u]``."""
    if units.single:
        return weights.square()
    costs = weights.new_zeros(units.count)
    return costs.index_add_(0, units.of_weight.to(weights.device), weights.square())
