"""The best weights of a linear layer under a given mask, in closed form.

A row w of the layer's matrix, with inputs X ``[k, n]`` and wanted outputs y, is to minimise

    ‖y − w X‖² + ρ ‖w − w₀‖²,   w zero outside its kept set K,   ρ = ridge · mean(diag H),

with H = X Xᵀ and c = y Xᵀ. With A = H + ρI and the residual b = c − H w₀ of the weights w₀ that
are already zero outside K, the change d = w − w₀ solves A_KK d_K = b_K. So does

    d = A⁻¹b' − A⁻¹_:Q ([A⁻¹]_QQ)⁻¹ [A⁻¹b']_Q,   b' = b on K and 0 on the removed set Q,

for one inverse that all rows share: the cheaper one wherever a row has lost less than half.

References:
    Frantar, Singh, Alistarh (2022), Optimal Brain Compression, section 4 (the group OBS formula).
"""

import torch
from torch import Tensor

from mfac_compress.mfac.cholesky import inverse_factor, solve
from mfac_compress.mfac.layerwise.moment_matrix import (
    check_finite,
    damped,
    ridge_error,
    similar_sets,
    submatrices,
)

# Largest ‖b − A d‖ on the kept set relative to ‖b‖ + ‖A‖‖d‖ (Frobenius norms).
TOLERANCE = 1e-8
# An inverse that all rows share loses as many digits as A's condition number has, which is up to
# k / ridge. Below this ridge each row has its own factor, which loses none.
_INVERSE_FROM = 1e-5
# Elements of the matrices that are factored at a time.
_AT_ONCE = 1 << 22


def masked_least_squares(
    weights: Tensor,
    H: Tensor,
    mask: Tensor,
    *,
    cross: Tensor | None = None,
    ridge: float = 0.0,
) -> Tensor:
    """Return the weights that minimise each row's squared error on its mask.

    All is computed in float64. Leading axes, if there are any, are layers of the same shape or
    the groups of a convolution.

    Args:
        weights: W₀, to which the ridge pulls. What is outside the mask counts in the default of
            ``cross`` only. Shape ``[..., r, k]``.
        H: X Xᵀ, symmetric. Shape ``[..., k, k]``.
        mask: True = kept. Shape ``[..., r, k]``.
        cross: Y Xᵀ of the wanted outputs Y; None for those of ``weights``, W₀ H. Shape
            ``[..., r, k]``.
        ridge: Strength of the pull in units of H's mean diagonal, at least
            :data:`~mfac_compress.mfac.layerwise.moment_matrix.MIN_RIDGE`.

    Returns:
        Exactly +0 outside the mask. Shape ``[..., r, k]``, dtype of ``weights``.

    Raises:
        ValueError: If the shapes do not agree, the ridge is negative, or something is not finite.
        PrecisionError: If H is not positive definite with the ridge added, or the solution misses
            :data:`TOLERANCE`.

    Example:
        Two inputs that are always equal: one takes over for the other.

        >>> H = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
        >>> masked_least_squares(torch.tensor([[1.0, 2.0]]), H, torch.tensor([[True, False]]))
        tensor([[3., 0.]])
    """
    _check(weights, H, mask, cross, ridge)
    rows, k = weights.shape[-2:]
    W0, H = weights.double().reshape(-1, rows, k), H.double().reshape(-1, k, k)
    keep = mask.reshape(-1, rows, k)
    target = W0 @ H if cross is None else cross.double().reshape(-1, rows, k)
    start = W0.masked_fill(~keep, 0)
    b = (target - start @ H).masked_fill_(~keep, 0)
    A = damped(H, ridge)
    try:
        change = _solve_rows(A, b, keep, ridge)
    except torch.linalg.LinAlgError as error:
        raise ridge_error(ridge, "H with it is not positive definite") from error
    _check_residual(A, change, b, keep, ridge)
    result = (start + change).to(weights.dtype).masked_fill_(~keep, 0)
    return result.reshape(weights.shape)


def _solve_rows(A: Tensor, b: Tensor, keep: Tensor, ridge: float) -> Tensor:
    """A_KK⁻¹ b_K of each row, zero elsewhere. ``[g, k, k]``, ``[g, r, k]``, ``[g, r, k]``."""
    groups, rows, k = b.shape
    group = torch.arange(groups, device=b.device).repeat_interleave(rows)
    b, keep = b.flatten(0, 1), keep.flatten(0, 1)
    kept = keep.sum(dim=1)
    result = torch.zeros_like(b)
    through_inverse = torch.zeros_like(kept, dtype=torch.bool)
    # The inverse costs as much as three factors of the full size.
    gain = (kept.double() ** 3 - (k - kept).double() ** 3).clamp_min(0).sum()
    if ridge >= _INVERSE_FROM and gain > 3 * groups * k**3:
        through_inverse = kept > k - kept
    inverted = through_inverse.unsqueeze(1)
    for rows_of, columns, valid in similar_sets(keep & ~inverted, _sets_at_once):
        part = submatrices(A, group[rows_of], columns, valid)
        x = solve(part, b[rows_of].gather(1, columns).masked_fill_(~valid, 0))
        result[rows_of] = result[rows_of].scatter_add(1, columns, x.masked_fill_(~valid, 0))
    if through_inverse.any():
        R = inverse_factor(A.clone())
        P = R.mT @ R
        full = torch.bmm(b.view(groups, rows, k), P).flatten(0, 1)
        result[through_inverse] = full[through_inverse]
        for rows_of, columns, valid in similar_sets(~keep & inverted, _sets_at_once):
            part = submatrices(P, group[rows_of], columns, valid)
            x = solve(part, full[rows_of].gather(1, columns).masked_fill_(~valid, 0))
            spread = torch.zeros_like(b[rows_of]).scatter_add(1, columns, x.masked_fill_(~valid, 0))
            result[rows_of] -= _times_own(spread, P, group[rows_of])
        result.masked_fill_(~keep, 0)
    return result.view(groups, rows, k)


def _sets_at_once(size: int) -> int:
    return _AT_ONCE // size**2


def _times_own(x: Tensor, A: Tensor, group: Tensor) -> Tensor:
    """Each row times the matrix of its group. ``[n, k]``, ``[g, k, k]``, ``[n]`` -> ``[n, k]``."""
    result = torch.empty_like(x)
    for number in group.unique().tolist():
        own = group == number
        result[own] = x[own] @ A[number]
    return result


def _check(weights: Tensor, H: Tensor, mask: Tensor, cross: Tensor | None, ridge: float) -> None:
    k, leading = weights.shape[-1], weights.shape[:-2]
    target = weights if cross is None else cross
    if H.shape != (*leading, k, k) or mask.shape != weights.shape or target.shape != weights.shape:
        raise ValueError(
            "weights, mask and cross must be [..., r, k] and H [..., k, k]. Got "
            f"{list(weights.shape)}, {list(mask.shape)}, {list(target.shape)} and {list(H.shape)}."
        )
    check_finite(ridge, weights, H, target)


def _check_residual(A: Tensor, change: Tensor, b: Tensor, keep: Tensor, ridge: float) -> None:
    missing = (b - change @ A).masked_fill_(~keep, 0).norm(dim=-1)
    size = b.norm(dim=-1) + A.flatten(1).norm(dim=1, keepdim=True) * change.norm(dim=-1)
    if not (missing <= TOLERANCE * size).all():
        raise ridge_error(ridge, f"the solution misses the tolerance of {TOLERANCE}")
