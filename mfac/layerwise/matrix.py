"""How a layer's weight tensor is a stack of matrices, one a group.

A linear layer computes y = W x with W ``[rows, columns]`` for each row of its input. A convolution
does so for each window of its input, in each of its groups. So every layer is ``[groups, rows,
columns]``, whatever the shape of its weight tensor.
"""

from dataclasses import dataclass

import torch
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

    Example:
        >>> of_transposed = torch.arange(6).view(2, 3).T.flatten()
        >>> matrix = LayerMatrix((2, 3), groups=1, rows=3, columns=2, order=of_transposed)
        >>> matrix.matrices(torch.tensor([[0, 1, 2], [3, 4, 5]]))
        tensor([[[0, 3],
                 [1, 4],
                 [2, 5]]])
    """

    shape: tuple[int, ...]
    groups: int
    rows: int
    columns: int
    order: Tensor | None = None

    def matrices(self, weight: Tensor) -> Tensor:
        """The matrices of a weight tensor, or of its mask. ``[*shape]`` -> ``[g, r, k]``."""
        flat = weight.detach().flatten()
        if self.order is not None:
            flat = flat[self.order.to(flat.device)]
        return flat.view(self.groups, self.rows, self.columns)

    def weight(self, matrices: Tensor) -> Tensor:
        """Invert :meth:`matrices`. ``[g, r, k]`` -> ``[*shape]``, contiguous."""
        flat = matrices.flatten()
        if self.order is not None:
            flat = torch.empty_like(flat).scatter_(0, self.order.to(flat.device), flat)
        return flat.view(self.shape)
