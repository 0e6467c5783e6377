"""The sparsity of each pruning step."""

from typing import Literal


def sparsity_schedule(
    sparsity: float, steps: int, schedule: Literal["geometric", "linear"] = "geometric"
) -> list[float]:
    """Return the sparsity after each step; the last one is ``sparsity``.

    ``geometric`` removes the same share of the remaining weights in every step, ``linear`` the
    same number of weights.

    Example:
        >>> [round(s, 3) for s in sparsity_schedule(0.75, 2)]
        [0.5, 0.75]
        >>> sparsity_schedule(0.75, 3, "linear")
        [0.25, 0.5, 0.75]
    """
    shares = [step / steps for step in range(1, steps)]
    if schedule == "geometric":
        intermediate = [1 - (1 - sparsity) ** share for share in shares]
    else:
        intermediate = [sparsity * share for share in shares]
    return [*intermediate, sparsity]
