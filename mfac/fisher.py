"""The empirical Fisher and its inverse: what both representations offer, and which one is chosen.

F = λI + 1/m Σ gᵢgᵢᵀ for m gradients, the rows of G ``[m, d]``, as a whole or as diagonal blocks of
side B. Where B <= m the B x B blocks themselves are the smaller object
(:class:`~mfac_compress.mfac.block_fisher.BlockFisher`); otherwise the gradients and their m x m
Gram matrix are (:class:`~mfac_compress.mfac.window.GradientWindow`). Either is inverted by matrix
products and Cholesky factors, which give what the paper's row-by-row recursion gives, faster.

References:
    Frantar, Kurtic, Alistarh (2021), M-FAC, section 3.1, equations 2 to 5.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mfac_compress.mfac.block_fisher import BlockFisher
from mfac_compress.mfac.block_inverse import BlockInverse
from mfac_compress.mfac.checks import check_damping, check_filled, check_gradients
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import uses_blocks
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup, Shard
from mfac_compress.mfac.window import GradientWindow
from mfac_compress.mfac.window_inverse import WindowInverse


class Fisher(Protocol):
    """Sums over gradients, undamped.

    Attributes:
        partition: The diagonal blocks, over d columns.
        num_gradients: m, how many gradients were added.
    """

    partition: BlockPartition
    num_gradients: int

    @property
    def mean_gradient(self) -> Tensor:
        """1/m Σ gᵢ. Shape ``[d]``, float64."""

    @property
    def mean_diagonal(self) -> float:
        """Mean of the diagonal, 1/(md) Σ ‖gᵢ‖²."""

    def add(self, gradients: Tensor) -> None:
        """Add k gradients. Shape ``[k, d]``."""

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """Yield the state for :meth:`add_part`, so that it can be saved."""

    def add_part(self, part: dict[str, Tensor]) -> None:
        """Take a part of the state of another Fisher of the same kind and partition."""


class Inverse(Protocol):
    """F⁻¹, factored once and applied many times. Vectors that are no ``[d]`` are a ValueError.

    Attributes:
        partition: The diagonal blocks.
        damping: λ.
        num_gradients: m.
        size: d.
    """

    partition: BlockPartition
    damping: float
    num_gradients: int
    size: int

    def ihvp(self, x: Tensor) -> Tensor:
        """Multiply F⁻¹ onto a vector. Shape ``[d]`` -> ``[d]``, dtype of ``x``."""

    def diagonal(self) -> Tensor:
        """Return the diagonal of F⁻¹. Shape ``[d]``, dtype of the gradients, at least float32."""

    def element(self, j: int, k: int) -> float:
        """Return [F⁻¹]_jk; zero if j and k are in different blocks.

        Raises:
            ValueError: If an index is outside ``[0, d)``.
        """

    def submatrices(self, columns: Tensor) -> Tensor:
        """Return [F⁻¹]_QQ for several sets of columns, float64. Shape ``[n, s]`` -> ``[n, s, s]``.

        Args:
            columns: Each row is one set Q. The first columns of successive sets increase.

        Raises:
            ValueError: If a set has columns of different blocks.
            PrecisionError: If xᵀ[F⁻¹]_QQ⁻¹x, which the removal of Q costs, may be off by more than
                1e-3 of itself for some x, as where rounding leaves it not positive definite.
        """

    def joint_update(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Remove all masked-out weights at once and adjust the kept ones optimally.

        Minimises ½ δᵀFδ subject to δ_Q = −w_Q, so δ_K = F_KK⁻¹ F_KQ w_Q for the kept set K and
        the removed set Q.

        Args:
            weights: w. Shape ``[d]``.
            mask: True = kept. Shape ``[d]``.

        Returns:
            w + δ, exactly +0 on Q. Shape ``[d]``, dtype of ``weights``.

        References:
            Hassibi and Stork (1992), Optimal Brain Surgeon, equation 5, for a set of weights.
        """

    def solve_kept(self, x: Tensor, mask: Tensor) -> Tensor:
        """Multiply the inverse of the kept weights' Fisher onto a vector: F_KK⁻¹ x_K.

        Args:
            x: Shape ``[d]``.
            mask: True = kept. Shape ``[d]``.

        Returns:
            F_KK⁻¹ x_K, zero where masked out. Shape ``[d]``, dtype of ``x``.
        """


def empty_fisher(
    partition: BlockPartition,
    num_gradients: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    shard: Shard | None = None,
    group: ProcessGroup = SINGLE,
) -> Fisher:
    """Return a Fisher without gradients, in its smaller representation.

    Args:
        partition: The diagonal blocks.
        num_gradients: m, how many gradients will be added.
        dtype: Storage dtype of the gradients, where they are kept.
        device: Where the sums or the gradients live.
        folder: Keep the gradients on disk in this folder, if they are kept at all.
        shard: The columns of this process; None for all of them.
        group: The processes among which the columns are divided.

    Raises:
        ValueError: If there is not enough space in the folder.
    """
    own = partition if shard is None else shard.partition
    if uses_blocks(partition, num_gradients):
        return BlockFisher(own, device)
    coupled = shard is not None and shard.coupled
    return GradientWindow(num_gradients, own, dtype, device, folder, group if coupled else SINGLE)


def fisher_of(gradients: Tensor, blocks: BlockPartition | int | None = None) -> Fisher:
    """Return the Fisher of gradients that are all there, in its smaller representation.

    Args:
        gradients: G, one gradient per row. Shape ``[m, d]``. Not changed; kept by reference where
            the gradients are the smaller representation.
        blocks: The diagonal blocks; or their side B, counted from the first column; or None for
            the full matrix.

    Raises:
        ValueError: If the gradients are not a non-empty ``[m, d]`` of the partition's d columns,
            or B is below 1.
    """
    check_gradients(gradients)
    if isinstance(blocks, int) and blocks < 1:
        raise ValueError(f"blocks must be of at least 1 column, or None. Got {blocks}.")
    partition = blocks
    if not isinstance(partition, BlockPartition):
        partition = BlockPartition.contiguous(gradients.shape[1], partition)
    check_gradients(gradients, partition.size)
    if not uses_blocks(partition, gradients.shape[0]):
        return GradientWindow.holding(gradients, partition)
    fisher = BlockFisher(partition, gradients.device)
    fisher.add(gradients)
    return fisher


def invert(fisher: Fisher, damping: float = 1e-5) -> Inverse:
    """Damp and factor a Fisher: the one way to an inverse, and its one policy on precision.

    Sums on blocks are float64, since the gradients are gone when the damping comes in. Products
    with gradients that are kept are float32 where a bound on their error allows it and float64
    elsewhere. Each element of the diagonal is within 1e-5 of itself, or the inverse is refused;
    no damping and no dtype is changed on the way.

    Args:
        fisher: Not changed, so another damping needs no new gradients.
        damping: λ > 0.

    Raises:
        ValueError: If there is no gradient, one was not finite, or the damping is not positive
            and finite.
        PrecisionError: If the damping is too small for float64.

    Example:
        >>> G = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> invert(fisher_of(G), damping=0.5).diagonal()  # F = diag(0.5 + 0.5, 0.5 + 2)
        tensor([1.0000, 0.4000])
    """
    damping = check_damping(damping)
    check_filled(fisher.num_gradients)
    if isinstance(fisher, BlockFisher):
        return BlockInverse(fisher, damping)
    if isinstance(fisher, GradientWindow):
        return WindowInverse(fisher, damping)
    raise TypeError(f"fisher must be made by empty_fisher or fisher_of. Got {type(fisher)}.")
