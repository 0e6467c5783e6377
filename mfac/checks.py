"""Checks of arguments that several modules take."""

from math import isfinite

from torch import Tensor


def check_damping(damping: float) -> float:
    """Return the damping λ if it is usable.

    Raises:
        ValueError: If it is not positive and finite.
    """
    if not (isfinite(damping) and damping > 0):
        raise ValueError(f"damping must be positive and finite. Got {damping}. Try 1e-5.")
    return float(damping)


def check_gradients(gradients: Tensor, size: int | None = None) -> None:
    """Check that gradients are rows of the flat vector's length.

    Args:
        gradients: Shape ``[k, d]``.
        size: d; None for any.

    Raises:
        ValueError: If they are not, or have no elements, or are no floating-point numbers.
    """
    if gradients.ndim != 2 or 0 in gradients.shape or size not in (None, gradients.shape[1]):
        raise ValueError(
            f"gradients must be [k, {'d' if size is None else size}], not empty. "
            f"Got {list(gradients.shape)}."
        )
    if not gradients.is_floating_point():
        raise ValueError(f"gradients must be floating-point. Got {gradients.dtype}.")


def check_filled(num_gradients: int) -> None:
    """Check that a Fisher is the mean over something.

    Raises:
        ValueError: If it has no gradient.
    """
    if not num_gradients:
        raise ValueError("A Fisher needs at least one gradient. Got none.")


def check_vector(x: Tensor, size: int) -> None:
    """Check that a vector has one value for each weight.

    Raises:
        ValueError: If it is not ``[size]``.
    """
    if x.shape != (size,):
        raise ValueError(f"x must have the shape [{size}]. Got {list(x.shape)}.")


def check_indices(j: int, k: int, size: int) -> None:
    """Check that two indices are of weights.

    Raises:
        ValueError: If one is outside ``[0, size)``.
    """
    if not (0 <= j < size and 0 <= k < size):
        raise ValueError(f"Indices must lie in [0, {size}). Got {j} and {k}.")


def check_same_block(same: Tensor) -> None:
    """Check that all columns of each set lie in one block of the Fisher.

    Args:
        same: For each column whether it lies where the first of its set does.

    Raises:
        ValueError: If not.
    """
    if not same.all():
        raise ValueError(
            "Each block of the Fisher must hold whole units. Got a unit that is divided. Use "
            "blocks whose side is a multiple of the size of a unit, or the full matrix."
        )
