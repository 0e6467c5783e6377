"""Products with a window of gradients G that reads it a few columns at a time.

Half of a Gram matrix follows from the other half, and half of a triangular matrix is zero: both
products are computed in tiles of rows, skipping what is not needed, on columns that stay in the
cache. So G may have a narrow dtype, or be larger than the memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac_compress.mfac.numerics import sum_error
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup

_CPU_COLUMNS, _CUDA_COLUMNS = 1024, 1 << 15
_CPU_TILE, _CUDA_TILE = 64, 512
# A memory-mapped file is read in longer runs of each row.
_FILE_BYTES = 1 << 25


@dataclass(frozen=True)
class Columns:
    """Columns ``[start, stop)`` of G.

    Args:
        gradients: G, kept by reference. Shape ``[m, d]``.
        start: First column.
        stop: One past the last column.
        device: Device of the computation.
        on_disk: Whether G is a memory-mapped file.
        group: The processes that hold the columns of this block.
    """

    gradients: Tensor
    start: int
    stop: int
    device: torch.device
    on_disk: bool = False
    group: ProcessGroup = SINGLE

    @property
    def width(self) -> int:
        """Number of columns in a slice."""
        return _CUDA_COLUMNS if self.device.type == "cuda" else _CPU_COLUMNS

    def slices(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, slice]]:
        """Yield successive slices of G's columns in ``dtype``, with their range in ``[0, d)``."""
        for part, start in self._pieces():
            for left in range(0, part.shape[1], self.width):
                G = part[:, left : left + self.width]
                at = slice(start + left, start + left + G.shape[1])
                yield G.to(self.device, dtype), at

    def gather(self, indices: Tensor) -> Tensor:
        """Return single columns of G in float64. Shape ``[m, len(indices)]``."""
        return self.gradients[:, indices.to(self.gradients.device)].to(self.device, torch.float64)

    def gram(self, dtype: torch.dtype, keep: Tensor | None = None) -> tuple[Tensor, float]:
        """Return GGᵀ, or G_K G_Kᵀ of the kept columns: products in ``dtype``, summed in float64.

        It covers the columns of all processes of the group, and each gets the same result.

        Args:
            dtype: Dtype of the products.
            keep: True = include the column. Shape ``[d]``.

        Returns:
            The lower half, ``[m, m]``, and a bound on the error of an element relative to
            ‖gᵢ‖‖gⱼ‖: less than a slice's error, since errors of different slices are independent.
        """
        m = self.gradients.shape[0]
        total = torch.zeros(m, m, dtype=torch.float64, device=self.device)
        product = torch.zeros(m, m, dtype=dtype, device=self.device)
        squares = torch.zeros(m, dtype=torch.float64, device=self.device)
        for columns, at in self.slices(dtype):
            G = columns if keep is None else columns * keep[at]
            for rows, before in self._tiles():
                torch.mm(G[rows], G[before].T, out=product[rows, before])
            total += product
            squares += product.diagonal().double().square()
        total, squares = self.group.all_reduce(total), self.group.all_reduce(squares)
        share = (squares.sqrt() / total.diagonal().clamp_min(1e-300)).max().item()
        return total, share * sum_error(min(self.width, self.stop - self.start), dtype)

    def leverage(self, R: Tensor, dtype: torch.dtype) -> Tensor:
        """Squared norms of the columns of RG. Shape ``[stop - start]``, float64.

        Args:
            R: Lower triangular. Shape ``[m, m]``.
            dtype: Dtype of the products.
        """
        result = torch.empty(self.stop - self.start, dtype=torch.float64, device=self.device)
        R = R.to(dtype)
        # (RG)ᵀ: BLAS is a fifth faster with G transposed, since its rows have a large stride.
        V = torch.empty(self.width, R.shape[0], dtype=dtype, device=self.device)
        for G, at in self.slices(dtype):
            columns = V[: G.shape[1]]
            for rows, before in self._tiles():
                torch.mm(G[before].T, R[rows, before].T, out=columns[:, rows])
            result[at.start - self.start : at.stop - self.start] = columns.square_().sum(dim=1)
        return result

    def product(self, x: Tensor) -> Tensor:
        """Gx over the columns of the whole group. Shape ``[d]`` -> ``[m]``, float64."""
        parts = (G @ x[at].to(G) for G, at in self.slices(torch.float64))
        return self.group.all_reduce(sum(parts))

    def all_reduce_max(self, value: float) -> float:
        """Return the maximum over the group, so that all processes take the same branch."""
        own = torch.tensor([value], dtype=torch.float64, device=self.device)
        return self.group.all_gather(own).max().item()

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        m = self.gradients.shape[0]
        tile = _CUDA_TILE if self.device.type == "cuda" else _CPU_TILE
        for first in range(0, m, tile):
            last = min(first + tile, m)
            yield slice(first, last), slice(last)

    def _pieces(self) -> Iterator[tuple[Tensor, int]]:
        width = self.stop - self.start
        if self.on_disk:
            row_bytes = self.gradients.shape[0] * self.gradients.itemsize
            width = max(self.width, _FILE_BYTES // row_bytes)
        for left in range(self.start, self.stop, width):
            part = self.gradients[:, left : min(left + width, self.stop)]
            yield (part.clone() if self.on_disk else part), left
