"""H = X Xᵀ of the inputs of a layer: damped, inverted, and restricted to what is kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac_compress.mfac.cholesky import inverse_factor
from mfac_compress.mfac.numerics import PrecisionError

# The least ridge. In directions in which the inputs do not vary the weights are not determined:
# with it they stay where they were. It also covers the rounding errors of float64 in H.
MIN_RIDGE = 1e-9


def damped(H: Tensor, ridge: float) -> Tensor:
    """H + ρI in float64, ρ = ridge · mean(diag H), with a ridge of :data:`MIN_RIDGE` at least.

    Where all inputs are zero, ρ = 1: any positive diagonal leaves the weights as they are.
    """
    A = H.double().clone()
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(dim=-1, keepdim=True)
    diagonal.add_(torch.where(mean > 0, max(ridge, MIN_RIDGE) * mean, 1.0))
    return A


@dataclass(frozen=True)
class KeptInverse:
    """(A_KK)⁻¹ for any kept sets K of the columns of some matrices A.

    Args:
        A: Positive definite. Shape ``[g, k, k]``.
        inverse: A⁻¹. Shape ``[g, k, k]``.
    """

    A: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, A: Tensor) -> "KeptInverse":
        """Invert A.

        Raises:
            torch.linalg.LinAlgError: If a matrix is not positive definite.
        """
        R = inverse_factor(A.clone())
        return cls(A, R.mT @ R)

    def restricted(self, group: Tensor, columns: Tensor, valid: Tensor) -> Tensor:
        """Return (A_KK)⁻¹ of each set, with the identity where it is filled up.

        Either by a factor of A_KK, or from A⁻¹ by elimination of the removed set Q,
        (A_KK)⁻¹ = [A⁻¹]_KK − [A⁻¹]_KQ ([A⁻¹]_QQ)⁻¹ [A⁻¹]_QK: what is smaller.

        Args:
            group: Which A. Shape ``[n, p]``.
            columns: K, filled up by other columns at its end. Shape ``[n, c]``.
            valid: False = not of K. Shape ``[n, c]``.

        Returns:
            Shape ``[n·p, c, c]``.
        """
        n, p = group.shape
        group, k = group.flatten(), self.A.shape[-1]
        columns, valid = (x.repeat_interleave(p, dim=0) for x in (columns, valid))
        kept = torch.zeros(n * p, k, dtype=torch.bool, device=columns.device)
        kept.scatter_(1, columns, valid)
        sizes = k - kept.sum(dim=1)
        largest = int(sizes.max())
        if largest > columns.shape[1] // 2:
            R = inverse_factor(submatrices(self.A, group, columns, valid))
            return R.mT @ R
        P = submatrices(self.inverse, group, columns, valid)
        if largest:
            gone = torch.argsort(kept.int(), dim=1, stable=True)[:, :largest]
            real = torch.arange(largest, device=gone.device) < sizes.unsqueeze(1)
            R = inverse_factor(submatrices(self.inverse, group, gone, real))
            coupling = self.inverse[group[:, None, None], gone.unsqueeze(2), columns.unsqueeze(1)]
            V = R @ coupling.mul_(real.unsqueeze(2) & valid.unsqueeze(1))
            P.baddbmm_(V.mT, V, alpha=-1)
        return P


def submatrices(A: Tensor, group: Tensor, columns: Tensor, valid: Tensor) -> Tensor:
    """A_SS of some sets S, filled up by the identity.

    Args:
        A: Shape ``[g, k, k]``.
        group: Which A. Shape ``[n]``.
        columns: S. Shape ``[n, c]``.
        valid: False = not of S. Shape ``[n, c]``.

    Returns:
        Shape ``[n, c, c]``.
    """
    if (group == group[0]).all() and (columns == columns[0]).all():
        own = A[group[0]][columns[0]][:, columns[0]]
        part = own.expand(len(columns), -1, -1).clone()
    else:
        part = A[group[:, None, None], columns.unsqueeze(2), columns.unsqueeze(1)]
    if not valid.all():
        part *= valid.unsqueeze(2) & valid.unsqueeze(1)
        part.diagonal(dim1=-2, dim2=-1).masked_fill_(~valid, 1)
    return part


def similar_sets(
    members: Tensor, at_once: Callable[[int], int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield sets of similar size together, the largest first; empty ones never.

    Args:
        members: Each set. Booleans, shape ``[n, k]``.
        at_once: The size of the largest -> how many to yield together.

    Yields:
        Numbers of the sets ``[n']``; their members in order, ``[n', s]``, filled up by others to
        the size of the largest; which of these are members.
    """
    sizes = members.sum(dim=1)
    sets = sizes.argsort(descending=True, stable=True)
    sets = sets[sizes[sets] > 0]
    while len(sets):
        largest = int(sizes[sets[0]])
        count = max(1, at_once(largest))
        some, sets = sets[:count], sets[count:]
        order = torch.argsort(~members[some], dim=1, stable=True)[:, :largest]
        yield some, order, torch.arange(largest, device=sizes.device) < sizes[some, None]


def check_finite(ridge: float, *tensors: Tensor) -> None:
    """Check the ridge, and what is computed with.

    Raises:
        ValueError: If the ridge is negative, or anything is NaN or infinite.
    """
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge must be finite and not negative. Got {ridge}. Try 0.1.")
    if not all(x.isfinite().all() for x in tensors):
        raise ValueError("weights, H and cross must be finite. Got NaN or infinity.")


def ridge_error(ridge: float, problem: str) -> PrecisionError:
    """Return the PrecisionError for a ridge that does not cover the errors of H."""
    return PrecisionError(
        "ridge must cover the rounding errors in H, the inputs' matrix of second moments. Got "
        f"{ridge}, and {problem}. Try 1e-3, or compute H in float64."
    )
