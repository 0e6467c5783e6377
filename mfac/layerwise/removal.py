"""Removing or rounding the units of many rows, the cheapest first: the inner loop of ExactOBS.

Fixing the columns Q of a row at values z (zero, or the nearest points of a grid) turns P = H⁻¹ into
P − VᵀV and w into w − VᵀL⁻¹(w_Q − z), with LLᵀ = P_QQ and V = L⁻¹P_Q. All blocks of rows are at
work at once. The V of some steps are kept apart from P until they make a matrix product, and
columns that are fixed are dropped from P, so that most of the work runs at the rate of products:
some 2/3 k³ operations for a row of k weights.

References:
    Frantar, Singh, Alistarh (2022), Optimal Brain Compression, algorithm 1 and section 5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns fixed before P is updated, by one product.
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


@dataclass(frozen=True)
class Grid:
    """Equally spaced points ``scale · {lowest, ..., highest}`` of each row.

    Args:
        scale: Positive. Shape ``[n, 1]``.
        lowest: First multiple.
        highest: Last multiple.
    """

    scale: Tensor
    lowest: int
    highest: int

    def nearest(self, w: Tensor) -> Tensor:
        """Return the nearest points. Shape ``[n, k]``."""
        return (w / self.scale).round_().clamp_(self.lowest, self.highest) * self.scale

    def is_outside(self, error: Tensor) -> Tensor:
        """Whether an error is larger than any within the grid. Booleans, shape of ``error``."""
        return error.abs() > (0.5 + 1e-6) * self.scale


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
    highest = P.new_zeros(len(is_open), 1)
    competition, left = (quotas.competition, quotas.left.clone()) if quotas else (None, None)
    is_open = is_open if left is None else is_open & (left[competition] > 0)
    rows = _Rows(P, w.clone(), is_open.clone(), _all_units(is_open))
    for _ in range(steps):
        cost, q = rows.cheapest(rows.w)
        some = cost.isfinite()  # blocks of rows that have something left to remove
        if not some.any():
            break
        highest = torch.where(some, torch.maximum(cost, highest * _GROWTH), highest)
        _write(costs, rows.original(q), highest, some)
        if left is not None:
            left[competition.gather(1, rows.original(q))] -= some.long()
        rows.fix(q, some, rows.w)
        if left is not None:
            rows.is_open &= left[competition.gather(1, rows.index)] > 0
    return costs


def round_in_order(P: Tensor, w: Tensor, is_open: Tensor, grid: Grid) -> Tensor:
    """Round one weight of each row after the other to the grid, adjusting those that are left.

    What falls outside the grid goes at once, the largest error first, while others are left to make
    up for it.

    Args:
        P: H⁻¹ over the columns of each row. Shape ``[n, k, k]``. Overwritten.
        w: Shape ``[n, k]``.
        is_open: Weights to round; the others must not be coupled with them. Shape ``[n, k]``.
        grid: The points.

    Returns:
        Points of the grid; zero where not to round. Shape ``[n, k]``.

    Raises:
        torch.linalg.LinAlgError: If P is not positive definite to rounding errors.
    """
    points = torch.zeros_like(w)
    rows = _Rows(P, w.unsqueeze(1).clone(), is_open.clone(), _all_units(is_open))
    for _ in range(int(is_open.sum(dim=1).max())):
        now = rows.w.squeeze(1)
        nearest = grid.nearest(now)
        error = now - nearest
        cost, q = rows.cheapest(error.unsqueeze(1), grid.is_outside(error))
        some = cost.isfinite()
        _write(points, rows.original(q), nearest.gather(1, q), some)
        rows.fix(q, some, error.unsqueeze(1))
    return points


class _Rows:
    """Blocks of rows at work: what is left of P, of the weights and of the units.

    Attributes:
        w: Present weights. Shape ``[n·p, e, u·t]``.
        is_open: Units that may be taken. Shape ``[n, u]``.
        index: Which unit of the first ones each is. Shape ``[n, u]``.
    """

    def __init__(self, P: Tensor, w: Tensor, is_open: Tensor, index: Tensor) -> None:
        self.w, self.is_open, self.index = w, is_open, index
        self._P, self._size = P, P.shape[-1] // is_open.shape[1]
        self._start()

    def _start(self) -> None:
        """Begin a new list of steps that P does not contain yet."""
        self._D, self._done = _diagonal_blocks(self._P, self._size), 0
        self._V = self._P.new_zeros(
            len(self._P), max(_COLUMNS_AT_ONCE, self._size), self._P.shape[-1]
        )

    def original(self, q: Tensor) -> Tensor:
        """Return which of the first units some are. Shape ``[n, 1]``."""
        return self.index.gather(1, q)

    def cheapest(self, error: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the least cost of each block of rows, infinity if nothing is open, and its unit.

        By elimination: xᵀD⁻¹x = x₁²/D₁₁ + the same of what is left after the first column.

        Args:
            error: What each weight would change by. Shape ``[n·p, e, u·t]``.
            first: Single weights to take before all others, the largest error first. Shape
                ``[n, u]``.

        Returns:
            Both of shape ``[n, 1]``.
        """
        D, y = self._D, error.unflatten(-1, (-1, self._size)).permute(3, 1, 0, 2)
        costs = y[0].square().sum(dim=0) / D[0, 0]
        while len(D) > 1:
            factor = D[1:, 0] / D[0, 0]
            y = y[1:] - factor.unsqueeze(1) * y[0]
            D = D[1:, 1:] - factor.unsqueeze(1) * D[0, 1:]
            costs += y[0].square().sum(dim=0) / D[0, 0]
        costs = costs.view(len(self.is_open), -1, self.is_open.shape[1]).sum(dim=1)
        if first is not None:
            costs = torch.where(first, -error.squeeze(1).square(), costs)
        cost, q = costs.masked_fill_(~self.is_open, torch.inf).min(dim=1, keepdim=True)
        if cost.isnan().any():
            raise torch.linalg.LinAlgError("A cost is not a number.")
        return cost, q

    def fix(self, q: Tensor, some: Tensor, error: Tensor) -> None:
        """Change one unit of each block of rows by an error, and adjust the others.

        Args:
            q: The units. Shape ``[n, 1]``.
            some: False = leave this block of rows as it is. Shape ``[n, 1]``.
            error: By what. Shape ``[n·p, e, u·t]``.
        """
        self.is_open.scatter_(1, q, self.is_open.gather(1, q) & ~some)
        size, matrices = self._size, torch.arange(len(self._P), device=q.device)
        q, some = (x.expand(-1, len(self._P) // len(q)).flatten() for x in (q, some))
        rows = self._P.unflatten(1, (-1, size))[matrices, q]
        if self._done:
            before = self._V[:, : self._done]
            own = before.unflatten(2, (-1, size))[matrices, :, q]
            rows = torch.baddbmm(rows, own.mT, before, alpha=-1)
        rows.masked_fill_(~some[:, None, None], 0)
        pivot = rows.unflatten(2, (-1, size))[matrices, :, q]
        pivot.diagonal(dim1=-2, dim2=-1).masked_fill_(~some.unsqueeze(1), 1)
        L = torch.linalg.cholesky(pivot)
        v = torch.linalg.solve_triangular(L, rows, upper=False)
        own = error.unflatten(2, (-1, size))[matrices, :, q]
        y = torch.linalg.solve_triangular(L, own.mT, upper=False)
        self.w.baddbmm_(y.mT, v, alpha=-1)
        self._V[:, self._done : self._done + size] = v
        for row in v.unflatten(2, (-1, size)).permute(1, 3, 0, 2):
            self._D -= row.unsqueeze(1) * row
        self._done += size
        if self._done + size > self._V.shape[1]:
            self._update()

    def _update(self) -> None:
        """Bring P up to date, without the columns of units that are not open in any rows."""
        remaining = max(1, int(self.is_open.sum(dim=1).max()))
        if remaining <= _SHRINK * self.is_open.shape[1]:
            order = torch.argsort(~self.is_open, dim=1, stable=True)[:, :remaining]
            self.index, self.is_open = self.index.gather(1, order), self.is_open.gather(1, order)
            columns = (
                order.unsqueeze(2) * self._size + torch.arange(self._size, device=order.device)
            ).flatten(1)
            columns = columns.repeat_interleave(len(self._P) // len(columns), dim=0).unsqueeze(1)
            matrices = torch.arange(len(self._P), device=order.device)[:, None, None]
            self._P = self._P[matrices, columns.mT, columns]
            self.w = self.w.gather(2, columns.expand(-1, self.w.shape[1], -1))
            self._V = self._V.gather(2, columns.expand(-1, self._V.shape[1], -1))
        self._P.baddbmm_(self._V.mT, self._V, alpha=-1)
        self._start()


def _all_units(is_open: Tensor) -> Tensor:
    return torch.arange(is_open.shape[1], device=is_open.device).expand_as(is_open)


def _write(out: Tensor, at: Tensor, values: Tensor, some: Tensor) -> None:
    """Write one value of each row. Shape ``[n, u]``, the others ``[n, 1]``."""
    out.scatter_(1, at, torch.where(some, values, out.gather(1, at)))


def _diagonal_blocks(P: Tensor, size: int) -> Tensor:
    """P_QQ of each unit Q. Shape ``[b, u·t, u·t]`` -> ``[t, t, b, u]``."""
    blocks = P.unflatten(2, (-1, size)).unflatten(1, (-1, size)).diagonal(dim1=1, dim2=3)
    return blocks.permute(1, 2, 0, 3).contiguous()
