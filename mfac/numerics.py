"""Bounds on rounding errors, and products as exact as their dtype allows.

Rounding errors of a sum of k products are modelled as independent: the sum of gᵢgⱼ over k terms
has an error of about u·max(1, √k/8)·‖gᵢ‖‖gⱼ‖, u being the unit roundoff. Blocked matrix products
show this in practice; six times as much is taken as the bound.

References:
    Higham and Mary (2019), A new approach to probabilistic rounding error analysis.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# The largest relative error allowed in any element of the diagonal of F⁻¹.
TOLERANCE = 1e-5
# The largest relative error of xᵀ[F⁻¹]_QQ⁻¹x for a set Q of several columns and any x.
SET_TOLERANCE = 1e-3
# The error bound as a multiple of the modelled error.
_CERTAINTY = 6


class PrecisionError(ValueError):
    """The damping is too small for the gradients: rounding errors would exceed the tolerance."""


def damping_error(damping: float, cause: str) -> PrecisionError:
    """Return the PrecisionError for a damping that is too small.

    Args:
        damping: λ.
        cause: What it must be large enough for.
    """
    return PrecisionError(
        f"damping must be large enough for {cause}. Got {damping}, which vanishes beside the "
        "gradients. Try ten times more, or scale the loss down."
    )


def sum_error(terms: int, dtype: torch.dtype) -> float:
    """Return a bound on the error of a sum of products in ``dtype``, relative to ‖gᵢ‖‖gⱼ‖."""
    return _CERTAINTY * torch.finfo(dtype).eps / 2 * max(1.0, terms**0.5 / 8)


def error_of_sets(matrices: Tensor, errors: Tensor) -> float:
    """Bound the relative error of xᵀA⁻¹x over several symmetric matrices A and all x.

    With an error E of A and C = D⁻¹ᐟ²AD⁻¹ᐟ² of unit diagonal it is at most ‖D⁻¹ᐟ²ED⁻¹ᐟ²‖ ‖C⁻¹‖ in
    first order, and this at most Σ (e_j / A_jj) tr C⁻¹.

    Args:
        matrices: A. Shape ``[n, s, s]``.
        errors: e_j, where |E_jk| is at most √(e_j e_k). Shape ``[n, s]``.

    Returns:
        The largest of the bounds; infinite where a matrix is not positive definite.
    """
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.rsqrt()
    L, info = torch.linalg.cholesky_ex(matrices * scale.unsqueeze(-1) * scale.unsqueeze(-2))
    inverse = torch.linalg.solve_triangular(L, torch.eye(L.shape[-1]).to(L), upper=False)
    bound = (errors / diagonal).sum(dim=-1) * inverse.square_().sum(dim=(-2, -1))
    # NaN comes from what is negative on the diagonal.
    bound = bound.masked_fill((info != 0) | bound.isnan(), float("inf"))
    return bound.max().item() if len(bound) else 0.0


def fits_float32(damping: float) -> bool:
    """Whether squares too small for float32 are negligible beside the damping."""
    return damping > 1e-25


def norm_bound(M: Tensor) -> float:
    """An upper bound of the squared spectral norm: ‖M‖₁‖M‖_∞."""
    sizes = M.abs()
    return (sizes.sum(dim=0).max() * sizes.sum(dim=1).max()).item()


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 products in float32 (no TF32, no bfloat16), then restore the settings.

    torch has two settings that must not contradict each other: one for all products, and one for
    each backend. If the caller has set both differently, reading the first raises an error.
    """
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        overall = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    except RuntimeError:
        overall = None
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        if overall is not None:
            torch.set_float32_matmul_precision(overall)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
