"""What rounding may cost, and how products are kept as exact as their dtype allows.

Rounding errors of a sum of k products are modelled as independent: the sum of gᵢgⱼ over k terms
is off by about u·max(1, √k/8)·‖gᵢ‖‖gⱼ‖, u being the unit roundoff. That is what blocked matrix
products show in practice; six times as much counts as the most that may happen.

References:
    Higham and Mary (2019), A new approach to probabilistic rounding error analysis.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# No element of the diagonal of F⁻¹ may be further off than this share of itself.
TOLERANCE = 1e-5
# An error this many times the modelled one is the most that is reckoned with.
_CERTAINTY = 6


class PrecisionError(ValueError):
    """The damping is too small for the gradients: rounding would show in the result."""


def too_small(damping: float, cause: str) -> PrecisionError:
    """The error that says so."""
    return PrecisionError(
        f"damping must be large enough for {cause}. Got {damping}, which vanishes beside the "
        "gradients. Try ten times more, or scale the loss down."
    )


def sum_error(terms: int, dtype: torch.dtype) -> float:
    """The most that a sum of products in ``dtype`` is off by, relative to ‖gᵢ‖‖gⱼ‖."""
    return _CERTAINTY * torch.finfo(dtype).eps / 2 * max(1.0, terms**0.5 / 8)


def fits_float32(damping: float) -> bool:
    """Whether squares that float32 can not hold vanish beside the damping."""
    return damping > 1e-25


def norm_bound(M: Tensor) -> float:
    """An upper bound of the squared spectral norm: ‖M‖₁‖M‖_∞."""
    sizes = M.abs()
    return (sizes.sum(dim=0).max() * sizes.sum(dim=1).max()).item()


@contextmanager
def exact_products() -> Iterator[None]:
    """Keep float32 products in float32 (no TF32, no bfloat16), then restore what was set.

    torch knows two ways of allowing them that must not contradict each other: one for all
    products, one for each backend. A caller who has mixed them can not be asked for the first.
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
