"""Removing the units of many rows, the cheapest first: the inner loop of ExactOBS.

Removing the columns Q of a row turns P = H⁻¹ into P − VᵀV and w into w − Vᵀ(L⁻¹w_Q), with
LLᵀ = P_QQ and V = L⁻¹P_Q. All blocks of rows are at work at once. The V of some removals are kept
apart from P until they make a matrix product, and columns that are gone are dropped from P, so that
most of the work runs at the rate of products: some 2/3 k³ operations for a row of k weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns removed before P is updated, by one product.
_COLUMNS_AT_ONCE = 32
# Columns are dropped once P's side shrinks to this share.
_SHRINK = 0.7
# Least growth of the cost from one removal to the next, so that sorting keeps their order.
_GROWTH = 1 + 1e-12


@dataclass(frozen=True)
class Quotas:
    """Competitions of which each lies in one block of rows, as in N:M patterns.

    Args:
        competition: Competition of each unit. Int64, shape ``[n, u]``.
        left: How many more units each competition loses. Int64, shape ``[competitions]``.
    """

    competition: Tensor
    left: Tensor


def remove_in_order(
    P: Tensor, w: Tensor, is_open: Tensor, steps: int, quotas: Quotas | None = None
) -> Tensor:
    """Remove one unit of each block of rows after the other; return what each removal costs.

    Args:
        P: H⁻¹ over the columns of the units, unit after unit. One for all rows of the block
            (``p = 1``) or one for each. Shape ``[n·p, u·t, u·t]``. Overwritten.
        w: The rows of each P. Shape ``[n·p, e, u·t]``.
        is_open: Units that may be removed; the others must not be coupled with them in P. Shape
            ``[n, u]``.
        steps: How many units each block of rows loses at most.
        quotas: Competitions that end after some removals; None for none.

    Returns:
        Growing in the order of removal, infinity for what is not removed. Shape ``[n, u]``.

    Raises:
        torch.linalg.LinAlgError: If P is not positive definite to rounding errors.
    """
    costs = torch.full(is_open.shape, torch.inf, dtype=P.dtype, device=P.device)
    highest, size = P.new_zeros(len(is_open), 1), P.shape[-1] // is_open.shape[1]
    index = torch.arange(is_open.shape[1], device=P.device).expand_as(is_open)
    competition, left = (quotas.competition, quotas.left.clone()) if quotas else (None, None)
    is_open = is_open.clone() if left is None else is_open & (left[competition] > 0)
    w = w.clone()
    for done in range(0, steps, at_once := max(1, _COLUMNS_AT_ONCE // size)):
        count = min(at_once, steps - done)
        D, V = _diagonal_blocks(P, size), P.new_zeros(len(P), count * size, P.shape[-1])
        for i in range(count):
            cost, q = _cheapest(D, w, is_open)
            some = cost.isfinite()  # blocks of rows that have something left to remove
            highest = torch.where(some, torch.maximum(cost, highest * _GROWTH), highest)
            original = index.gather(1, q)
            costs.scatter_(1, original, torch.where(some, highest, costs.gather(1, original)))
            _remove(P, w, D, V, i * size, q, some)
            is_open.scatter_(1, q, False)
            if left is not None:
                own = competition.gather(1, q)
                left[own] -= some.long()
                is_open &= left[competition] > 0
        remaining = int(is_open.sum(dim=1).max())
        if not remaining:
            break
        if remaining <= _SHRINK * is_open.shape[1]:
            order = torch.argsort(~is_open, dim=1, stable=True)[:, :remaining]
            index, is_open = index.gather(1, order), is_open.gather(1, order)
            competition = None if competition is None else competition.gather(1, order)
            P, w, V = _columns_of(P, w, V, order, size)
        P.baddbmm_(V.mT, V, alpha=-1)
    return costs


def _cheapest(D: Tensor, w: Tensor, is_open: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least cost of each block of rows, infinity if nothing is open, and its unit.

    By elimination: w_Qᵀ D⁻¹ w_Q = w₁²/D₁₁ + the same of what is left after the first column.

    Args:
        D: P_QQ of each unit. Shape ``[t, t, n·p, u]``.
        w: Shape ``[n·p, e, u·t]``.
        is_open: Shape ``[n, u]``.

    Returns:
        Both of shape ``[n, 1]``.
    """
    y = w.unflatten(-1, (-1, len(D))).permute(3, 1, 0, 2)
    costs = y[0].square().sum(dim=0) / D[0, 0]
    while len(D) > 1:
        factor = D[1:, 0] / D[0, 0]
        y = y[1:] - factor.unsqueeze(1) * y[0]
        D = D[1:, 1:] - factor.unsqueeze(1) * D[0, 1:]
        costs += y[0].square().sum(dim=0) / D[0, 0]
    costs = costs.view(len(is_open), -1, is_open.shape[1]).sum(dim=1)
    cost, q = costs.masked_fill_(~is_open, torch.inf).min(dim=1, keepdim=True)
    if cost.isnan().any():
        raise torch.linalg.LinAlgError("A cost is not a number.")
    return cost, q


def _remove(P: Tensor, w: Tensor, D: Tensor, V: Tensor, done: int, q: Tensor, some: Tensor) -> None:
    """Remove unit q of each block of rows: change w and D, and write the next rows of V.

    Args:
        P: Before the removals in V. Shape ``[n·p, u·t, u·t]``.
        w: Shape ``[n·p, e, u·t]``. Changed.
        D: Shape ``[t, t, n·p, u]``. Changed.
        V: Shape ``[n·p, c, u·t]``. Changed.
        done: Rows of V that are written.
        q: Shape ``[n, 1]``.
        some: False = remove nothing of this block of rows. Shape ``[n, 1]``.
    """
    size, matrices = len(D), torch.arange(len(P), device=P.device)
    q, some = (x.expand(-1, len(P) // len(q)).flatten() for x in (q, some))
    rows = P.unflatten(1, (-1, size))[matrices, q]
    if done:
        before = V[:, :done]
        own = before.unflatten(2, (-1, size))[matrices, :, q]
        rows = torch.baddbmm(rows, own.mT, before, alpha=-1)
    some = some.view(-1, 1, 1)
    rows.masked_fill_(~some, 0)
    pivot = rows.unflatten(2, (-1, size))[matrices, :, q]
    pivot.diagonal(dim1=-2, dim2=-1).masked_fill_(~some.squeeze(-1), 1)
    L = torch.linalg.cholesky(pivot)
    v = torch.linalg.solve_triangular(L, rows, upper=False)
    y = torch.linalg.solve_triangular(L, w.unflatten(2, (-1, size))[matrices, :, q].mT, upper=False)
    V[:, done : done + size] = v
    w.baddbmm_(y.mT.masked_fill(~some, 0), v, alpha=-1)
    for row in v.unflatten(2, (-1, size)).permute(1, 3, 0, 2):
        D -= row.unsqueeze(1) * row


def _diagonal_blocks(P: Tensor, size: int) -> Tensor:
    """P_QQ of each unit Q. Shape ``[b, u·t, u·t]`` -> ``[t, t, b, u]``."""
    blocks = P.unflatten(2, (-1, size)).unflatten(1, (-1, size)).diagonal(dim1=1, dim2=3)
    return blocks.permute(1, 2, 0, 3).contiguous()


def _columns_of(
    P: Tensor, w: Tensor, V: Tensor, units: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Restrict P, w and V to some units ``[n, u']`` of each block of rows."""
    columns = (units.unsqueeze(-1) * size + torch.arange(size, device=P.device)).flatten(1)
    columns = columns.repeat_interleave(len(P) // len(columns), dim=0)
    matrices = torch.arange(len(P), device=P.device)[:, None, None]
    rest = columns.unsqueeze(1)
    return (
        P[matrices, columns.unsqueeze(2), rest],
        w.gather(2, rest.expand(-1, w.shape[1], -1)),
        V.gather(2, rest.expand(-1, V.shape[1], -1)),
    )
