"""The increase of the loss if a unit of weights is removed."""

from typing import Literal

import torch
from torch import Tensor

from mfac_compress.mfac.block_inverse import BlockInverse
from mfac_compress.mfac.fisher import Inverse
from mfac_compress.mfac.numerics import damping_error
from mfac_compress.mfac.partition import BlockPartition
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

    ``independent`` takes each unit Q as the first to go: ½ w_Qᵀ ([F⁻¹]_QQ)⁻¹ w_Q, which for a
    single weight is w_q² / (2 [F⁻¹]_qq). ``sequential`` takes each weight at its turn; see
    :mod:`~mfac_compress.mfac.sequential`.

    Args:
        weights: w. Shape ``[d]``.
        inverse: F⁻¹.
        units: What goes together.
        keep: True = kept so far; what has gone may cost anything. Shape ``[d]``.
        selection: Which of the two; None for ``sequential`` where it can be.

    Returns:
        Shape ``[u]``, dtype of ``weights``.

    Raises:
        ValueError: If ``sequential`` is asked for units of several weights, or an inverse that is
            not given by blocks.
        PrecisionError: If the damping is too small for the costs of units of several weights.

    References:
        Hassibi and Stork (1992), Optimal Brain Surgeon, equation 5, for a set of weights.
        Frantar, Kurtic, Alistarh (2021), M-FAC, equation 1.
    """
    by_turns = units.single and isinstance(inverse, BlockInverse)
    if selection == "sequential" and not by_turns:
        raise ValueError(
            "selection 'sequential' needs units of one weight, and blocks of the Fisher no larger "
            f"than the number of gradients. Got {len(weights)} weights in {units.count} units, "
            f"blocks of up to {inverse.partition.largest} and {inverse.num_gradients} gradients. "
            "Use smaller blocks, or 'independent'."
        )
    if by_turns and selection != "independent":
        return sequential_saliency(weights, keep, inverse)
    if units.single:
        return weights.square() / (2 * inverse.diagonal().to(weights))
    return _costs_of_sets(weights, inverse, units)


def _costs_of_sets(weights: Tensor, inverse: Inverse, units: Units) -> Tensor:
    """Sum up the costs of the parts of each unit that lie in different blocks of the Fisher.

    F⁻¹ is zero between blocks, so the sum is exact for the Fisher as it is.
    """
    parts, unit = units.within(_block_of_each_column(inverse.partition))
    part_costs = weights.new_empty(parts.count)
    for numbers, cpu_columns in parts.columns_by_size():
        columns = cpu_columns.to(weights.device)
        L, info = torch.linalg.cholesky_ex(inverse.submatrices(columns))
        if info.any():
            raise damping_error(inverse.damping, "float64 to judge several weights together")
        w = weights[columns].double().unsqueeze(-1)
        v = torch.linalg.solve_triangular(L, w, upper=False).squeeze(-1)
        part_costs[numbers.to(weights.device)] = (v.square().sum(dim=1) / 2).to(part_costs)
    return weights.new_zeros(units.count).index_add_(0, unit.to(weights.device), part_costs)


def _block_of_each_column(partition: BlockPartition) -> Tensor:
    """Number the blocks. Shape ``[d]``."""
    sizes = [stop - start for run in partition for start, stop in run.bounds]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def magnitude_costs(weights: Tensor, units: Units) -> Tensor:
    """Σ w² over each unit. Shape ``[d]`` -> ``[u]``."""
    if units.single:
        return weights.square()
    costs = weights.new_zeros(units.count)
    return costs.index_add_(0, units.of_weight.to(weights.device), weights.square())
