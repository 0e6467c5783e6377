"""The sparsity of each pruning step."""

from typing import Literal

Interpolation = Literal["geometric", "linear", "cubic"]


def sparsity_schedule(
    sparsity: float,
    steps: int,
    interpolation: Interpolation = "geometric",
    first: float | None = None,
) -> list[float]:
    """Return the sparsity after each step; the last one is ``sparsity``.

    ``geometric`` removes the same share of the remaining weights in every step, ``linear`` the
    same number of weights, and ``cubic`` many at first and few at last: what is still to be removed
    falls with the third power of the steps that are left.

    Args:
        sparsity: After the last step.
        steps: Their number.
        interpolation: Between the start and the end.
        first: After the first step, from which the others go on; None to start from 0 before it.

    References:
        Zhu, Gupta (2017), To prune, or not to prune, section 3 (``cubic``, ``first``).

    Example:
        >>> [round(s, 3) for s in sparsity_schedule(0.75, 2)]
        [0.5, 0.75]
        >>> sparsity_schedule(0.75, 3, "linear")
        [0.25, 0.5, 0.75]
        >>> sparsity_schedule(0.75, 3, "linear", first=0.5)
        [0.5, 0.625, 0.75]
        >>> sparsity_schedule(0.875, 2, "cubic")
        [0.765625, 0.875]
    """
    if steps == 1:
        return [sparsity]
    if first is None:
        start, shares = 0.0, [step / steps for step in range(1, steps)]
    else:
        start, shares = first, [step / (steps - 1) for step in range(steps - 1)]
    if interpolation == "geometric":
        ratio = (1 - sparsity) / (1 - start)
        intermediate = [1 - (1 - start) * ratio**share for share in shares]
    else:
        power = 1 if interpolation == "linear" else 3
        intermediate = [sparsity + (start - sparsity) * (1 - share) ** power for share in shares]
    return [*intermediate, sparsity]
