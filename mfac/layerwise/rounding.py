"""Rounding the weights of a layer to a grid, each adjusting those that are not rounded yet.

``fixed`` takes the inputs of largest second moment first, as GPTQ with its order by activations
does. With UᵀU = H⁻¹ and U upper triangular all that it needs are the rows of U, which rows under the
same mask share. ``greedy`` rounds in each row what costs least next, (w_q − z_q)² / [H⁻¹]_qq with
z_q the nearest point of the grid, as OBQ does. On the layers of ResNet-20, to 4 and 8 bits, dense
and at 70% sparsity, their errors differ by less than 4% either way, and ``fixed`` takes a third of
the time under masks, a twentieth without. Zeros outside a mask stay zero.

References:
    Frantar, Singh, Alistarh (2022), Optimal Brain Compression, section 5 (OBQ).
    Frantar, Ashkboos, Hoefler, Alistarh (2023), GPTQ, steps 2 and 3 of section 3.
"""

from typing import Literal

import torch
from torch import Tensor

from mfac_compress.mfac.cholesky import inverse_factor
from mfac_compress.mfac.layerwise.moment_matrix import (
    KeptInverse,
    check_finite,
    damped,
    ridge_error,
    similar_sets,
    submatrices,
)
from mfac_compress.mfac.layerwise.removal import Grid, round_in_order

Order = Literal["greedy", "fixed"]

# Elements of the rows' matrices that are at work at once.
_AT_ONCE = 1 << 25
# Columns after which the others are adjusted, by a matrix product.
_COLUMNS_AT_ONCE = 64


def round_to_grid(
    weights: Tensor,
    H: Tensor,
    mask: Tensor,
    scale: Tensor,
    *,
    levels: tuple[int, int] = (-127, 127),
    order: Order = "fixed",
    ridge: float = 1e-6,
) -> Tensor:
    """Return weights on each row's grid that keep the layer's outputs as they are.

    Args:
        weights: W. Shape ``[g, r, k]``.
        H: X Xᵀ of the inputs of each group. Shape ``[g, k, k]``.
        mask: True = kept. Shape ``[g, r, k]``.
        scale: Distance between the points of each row's grid. Shape ``[g, r]``.
        levels: The lowest and the highest point in units of the scale.
        order: Order in which weights are rounded.
        ridge: What is added to H's diagonal in units of its mean, at least
            :data:`~mfac_compress.mfac.layerwise.moment_matrix.MIN_RIDGE`.

    Returns:
        Whole multiples of the scale, exactly +0 outside the mask. Shape ``[g, r, k]``, dtype of
        ``weights``.

    Raises:
        ValueError: If shapes do not agree, a scale is not positive, or levels do not hold zero.
        PrecisionError: If H is not positive definite with the ridge added.

    Example:
        Two inputs that are nearly equal: the second weight makes up for the rounding of the first.

        >>> H = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]])
        >>> mask = torch.ones(1, 1, 2, dtype=torch.bool)
        >>> round_to_grid(torch.tensor([[[0.4, 0.4]]]), H, mask, torch.ones(1, 1))
        tensor([[[0., 1.]]])
    """
    _check(weights, H, mask, scale, levels, ridge)
    rows, k = weights.shape[1:]
    keep, W = mask.flatten(0, 1), weights.double().flatten(0, 1)
    group = torch.arange(len(weights), device=W.device).repeat_interleave(rows)
    steps = scale.double().flatten()
    result = torch.zeros_like(W)
    A = damped(H, ridge)
    try:
        inverses = KeptInverse.of(A) if order == "greedy" else None
        for some, columns, valid in similar_sets(keep, lambda size: _AT_ONCE // (size * k)):
            grid = Grid(steps[some].view(-1, 1), *levels)
            w = W[some].gather(1, columns).masked_fill_(~valid, 0)
            if inverses is not None:
                P = inverses.restricted(group[some, None], columns, valid)
                z = round_in_order(P, w, valid, grid)
            else:
                z = _round_fixed(A, group[some], columns, valid, w, grid)
            # Added, not written: −0, a zero that compresses badly, becomes +0.
            rounded = z.masked_fill_(~valid, 0)
            result[some] = result[some].scatter_add(1, columns, rounded)
    except torch.linalg.LinAlgError as error:
        raise ridge_error(ridge, "H with it is not positive definite") from error
    return result.view(weights.shape).to(weights.dtype)


def _round_fixed(
    A: Tensor, group: Tensor, columns: Tensor, valid: Tensor, w: Tensor, grid: Grid
) -> Tensor:
    """Round rows in descending order of A's diagonal; what is not valid goes last.

    Args:
        A: H with the ridge added. Shape ``[g, k, k]``.
        group: Which A. Shape ``[n]``.
        columns: Those of each row. Shape ``[n, c]``.
        valid: Shape ``[n, c]``.
        w: Shape ``[n, c]``.
        grid: The points.

    Returns:
        Shape ``[n, c]``.
    """
    diagonal = A.diagonal(dim1=-2, dim2=-1)[group.unsqueeze(1), columns]
    order = torch.argsort(diagonal.masked_fill(~valid, -1), dim=1, descending=True, stable=True)
    sets = [x.gather(1, order).flip(1) for x in (columns, valid)]
    shared = bool((group == group[0]).all() and (sets[0] == sets[0][0]).all() and valid.all())
    if shared:
        group, sets = group[:1], [x[:1] for x in sets]
    # Backwards A = RᵀR gives H⁻¹ = UᵀU: U is R turned round.
    U = inverse_factor(submatrices(A, group, *sets)).flip(1, 2)
    w, z = w.gather(1, order), torch.empty_like(w)
    for start in range(0, w.shape[1], _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, w.shape[1])
        errors = w.new_empty(len(w), stop - start)
        for j in range(start, stop):
            now = w[:, j : j + 1]
            z[:, j : j + 1] = point = grid.nearest(now)
            errors[:, j - start : j - start + 1] = error = (now - point) / U[:, j, j : j + 1]
            w[:, j + 1 : stop] -= error * U[:, j, j + 1 : stop]
        w[:, stop:] -= _times_own(errors, U[:, start:stop, stop:])
    return torch.empty_like(z).scatter_(1, order, z)


def _times_own(x: Tensor, matrices: Tensor) -> Tensor:
    """Each row times its own matrix, or times the one. ``[n, c]``, ``[n or 1, c, k]``."""
    if len(matrices) == 1:
        return x @ matrices[0]
    return torch.bmm(x.unsqueeze(1), matrices).squeeze(1)


def _check(
    weights: Tensor,
    H: Tensor,
    mask: Tensor,
    scale: Tensor,
    levels: tuple[int, int],
    ridge: float,
) -> None:
    shape, k = weights.shape, weights.shape[-1]
    fits = weights.ndim == 3 and mask.shape == shape and H.shape == (shape[0], k, k)
    if not fits or scale.shape != shape[:2]:
        raise ValueError(
            "weights and mask must be [g, r, k], H [g, k, k] and scale [g, r]. Got "
            f"{list(shape)}, {list(mask.shape)}, {list(H.shape)} and {list(scale.shape)}."
        )
    check_finite(ridge, weights, H, scale)
    if not (scale > 0).all():
        raise ValueError(f"scale must be positive. Got {scale.min().item()}. Use 1 for zero rows.")
    if not levels[0] <= 0 <= levels[1]:
        raise ValueError(f"levels must hold zero. Got {levels}. Try (-127, 127).")
