"""The factor of S = mλI + GGᵀ, and the diagonal of F⁻¹ to a guaranteed accuracy.

With S = LLᵀ, R = L⁻¹ and v_j column j of V = RG, the diagonal is (1 − n_j)/λ for n_j = ‖v_j‖².
An error E of RSRᵀ changes n_j by v_jᵀEv_j, at most ‖E‖n_j: a relative error of the diagonal of
‖E‖n_j/(1 − n_j). The n_j sum to less than m, so however ill-conditioned G is, no more than about m
of the d columns come near 1. Hence three stages, each for the columns that the one before could
not give to the tolerance:

1. products in float32;
2. products in float64, with an error bound for each column;
3. columns J with cancellation in 1 − n_j are removed from S. With S_K = mλI + G_K G_Kᵀ of the
   others, [F⁻¹]_JJ = (λ(I + G_JᵀS_K⁻¹G_J))⁻¹ contains no difference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mfac_compress.mfac.columns import Columns
from mfac_compress.mfac.numerics import (
    TOLERANCE,
    damping_error,
    fits_float32,
    norm_bound,
    sum_error,
)

# First-order error bounds are not valid for an error of RSRᵀ above this.
_FIRST_ORDER = 0.1
_COLUMNS_AT_ONCE = 1024


@dataclass(frozen=True)
class GramFactor:
    """S = mλI + GGᵀ = LLᵀ and R = L⁻¹, float64 ``[m, m]``.

    Attributes:
        R: Inverse of the Cholesky factor.
        scale: √S_ii. Shape ``[m]``.
        error: Error bound of S_ij, relative to √(S_ii S_jj).
        norm_error: ‖E‖, the error bound of RSRᵀ; infinite if S could not be factored.
        growth: Factor by which products with R amplify rounding errors: ‖|R||L|‖.
    """

    R: Tensor
    scale: Tensor
    error: float
    norm_error: float
    growth: float

    @classmethod
    def of(
        cls, columns: Columns, shift: float, dtype: torch.dtype, keep: Tensor | None = None
    ) -> "GramFactor":
        """Factor S with products in ``dtype``, of all columns or those where ``keep`` is true."""
        S, error = columns.gram(dtype, keep)
        if dtype == torch.float64:
            _check_finite(S.diagonal())
        S.diagonal().add_(shift)
        scale, m = S.diagonal().sqrt(), S.shape[0]
        error = columns.all_reduce_max(error + sum_error(m, torch.float64))
        L, info = torch.linalg.cholesky_ex(S)
        # Processors may round differently, but all processes must take the same branch.
        if columns.all_reduce_max(info.item() or not torch.isfinite(scale).all()):
            return cls(L, scale, error, float("inf"), float("inf"))
        R = torch.linalg.solve_triangular(L, torch.eye(m).to(L), upper=False)
        growth = norm_bound(R.abs() @ L.abs()) ** 0.5
        # The norm of a random symmetric matrix is about 2√m times the size of its entries.
        norm_error = columns.all_reduce_max(error * m**0.5 / 2 * norm_bound(R * scale))
        return cls(R, scale, error, norm_error, growth)


def inverse_diagonal(columns: Columns, shift: float, damping: float) -> tuple[Tensor, Tensor]:
    """Return R of S, and the diagonal of F⁻¹ on these columns.

    Args:
        columns: G.
        shift: mλ.
        damping: λ.

    Returns:
        R ``[m, m]`` and the diagonal ``[stop - start]``, both float64.

    Raises:
        PrecisionError: If even float64 cannot give the diagonal to :data:`TOLERANCE`.
    """
    width = columns.stop - columns.start
    n = torch.empty(width, dtype=torch.float64, device=columns.device)
    doubtful = torch.arange(width, device=columns.device)
    factor, dtype = None, torch.promote_types(torch.float32, columns.gradients.dtype)
    if dtype == torch.float32 and fits_float32(damping):
        factor = GramFactor.of(columns, shift, dtype)
        if factor.norm_error <= TOLERANCE:
            doubtful = _measure(columns, factor, dtype, n, doubtful)
    if columns.all_reduce_max(doubtful.numel()):
        factor = exact_factor(columns, shift, damping)
        doubtful = _measure(columns, factor, torch.float64, n, doubtful)
        doubtful = _bound_per_column(columns, factor, n, doubtful)
    assert factor is not None
    diagonal = (1 - n) / damping
    if columns.all_reduce_max(doubtful.numel()):
        diagonal[doubtful] = _schur_diagonal(columns, doubtful, shift, damping)
    return factor.R, diagonal


def _check_finite(squares: Tensor) -> None:
    bad = (~torch.isfinite(squares)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"gradients must be finite, and so must their squares. Got NaN or infinity in row "
            f"{bad[0]}. Check the sample that it came from."
        )


def exact_factor(
    columns: Columns, shift: float, damping: float, keep: Tensor | None = None
) -> GramFactor:
    """Factor S in float64.

    Raises:
        PrecisionError: If bounds of the first order do not hold for it; in all processes.
    """
    factor = GramFactor.of(columns, shift, torch.float64, keep)
    if not factor.norm_error <= _FIRST_ORDER:
        raise damping_error(damping, "float64 to factor the Fisher")
    return factor


def _measure(
    columns: Columns, factor: GramFactor, dtype: torch.dtype, n: Tensor, doubtful: Tensor
) -> Tensor:
    """Write n_j of the doubtful columns; return those still not accurate enough."""
    if 8 * len(doubtful) > len(n):
        n.copy_(columns.leverage(factor.R, dtype))
    else:
        for part in doubtful.split(_COLUMNS_AT_ONCE):
            n[part] = (factor.R @ columns.gather(columns.start + part)).square_().sum(dim=0)
    error = factor.norm_error + 2 * factor.growth * sum_error(factor.R.shape[0], dtype)
    now = n[doubtful]
    return doubtful[~(error * now <= TOLERANCE * (1 - now))]


def _bound_per_column(columns: Columns, factor: GramFactor, n: Tensor, doubtful: Tensor) -> Tensor:
    """Return the columns that stay doubtful when the error of each is bounded separately."""
    left = [doubtful[:0]]
    for part in doubtful.split(_COLUMNS_AT_ONCE):
        G = columns.gather(columns.start + part)
        error = column_errors(factor, G, factor.R @ G)
        left.append(part[~(error <= TOLERANCE * (1 - n[part]))])
    return torch.cat(left)


def column_errors(factor: GramFactor, G: Tensor, V: Tensor) -> Tensor:
    """Bound the error of n_j for some columns of G. Shape ``[k]``.

    With x = S⁻¹g, an error D of S changes n by xᵀDx and one of the product Rg by 2vᵀ(|R||g|).

    Args:
        factor: Of S, in float64.
        G: The columns. Shape ``[m, k]``.
        V: RG. Shape ``[m, k]``.
    """
    R = factor.R
    gram = factor.error * (factor.scale.unsqueeze(1) * (R.mT @ V)).square_().sum(dim=0)
    rounding = 2 * sum_error(R.shape[0], torch.float64)
    return gram + rounding * (V.abs() * (R.abs() @ G.abs())).sum(dim=0)


def _schur_diagonal(columns: Columns, doubtful: Tensor, shift: float, damping: float) -> Tensor:
    """Return the diagonal of F⁻¹ on the doubtful columns by the Schur complement.

    J is the set of the doubtful columns of all processes. Shape ``[len(doubtful)]``.
    """
    group = columns.group
    keep = torch.ones(columns.gradients.shape[1], dtype=torch.bool, device=columns.device)
    keep[columns.start + doubtful] = False
    factor = exact_factor(columns, shift, damping, keep)
    V = group.all_gather((factor.R @ columns.gather(columns.start + doubtful)).mT).mT
    block = V.mT @ V
    block.diagonal().add_(1)
    L, info = torch.linalg.cholesky_ex(block)
    if info.item():
        raise damping_error(damping, "float64 to factor the Fisher")
    inverse = torch.cholesky_inverse(L)
    diagonal = inverse.diagonal()
    # The same bounds as for blocks of F, since errors of W = VᵀV are relative to its diagonal.
    own = inverse.square() * block.diagonal().unsqueeze(1)
    gram = (factor.scale.unsqueeze(1) * (factor.R.mT @ (V @ inverse))).square_()
    rounding = sum_error(len(diagonal) + len(V), torch.float64) * (1 + 2 * factor.growth)
    error = rounding * own.sum(dim=0) + factor.error * gram.sum(dim=0)
    if columns.all_reduce_max(not (error <= TOLERANCE * diagonal).all()):
        raise damping_error(damping, "float64 to invert the Fisher")
    counts = group.all_gather(torch.tensor([len(doubtful)], device=columns.device)).tolist()
    return diagonal.split(counts)[group.rank] / damping
