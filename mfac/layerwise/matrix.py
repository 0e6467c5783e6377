"""How a layer's weight tensor is a stack of matrices, one a group.

A linear layer computes y = W x with W ``[rows, columns]`` for each row of its input. A convolution
does so for each window of its input, in each of its groups. So every layer is ``[groups, rows,
columns]``, whatever the shape of its weight tensor.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerMatrix:
    """The matrices that a weight tensor consists of.

    Args:
        shape: Shape of the tensor.
        groups: g, number of matrices.
        rows: r, outputs of each.
        columns: k, inputs of each.
        order: Position in the flattened tensor of each element of the matrices, in row-major
            order; None where both have the same order.
    """

    shape: tuple[int, ...]
    groups: int
    rows: int
    columns: int
    order: Tensor | None = None

    def matrices(self, weight: Tensor) -> Tensor:
        """The matrices of a weight tensor, or of its mask. ``[*shape]`` -> ``[g, r, k]``."""
        raise NotImplementedError

    def weight(self, matrices: Tensor) -> Tensor:
        """Invert :meth:`matrices`. ``[g, r, k]`` -> ``[*shape]``, contiguous."""
        raise NotImplementedError
