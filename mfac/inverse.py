"""The inverse damped empirical Fisher: one interface, two representations.

F = λI + 1/m Σ gᵢgᵢᵀ for m gradients, the rows of G ``[m, d]``, as a whole or as diagonal blocks of
side B. Where B <= m the B x B blocks themselves are the smaller object
(:class:`~mfac_compress.mfac.block_inverse.BlockInverse`); otherwise the m x m Gram matrix is
(:class:`~mfac_compress.mfac.window_inverse.WindowInverse`). Both are built from matrix products
and Cholesky factors, which give what the paper's row-by-row recursion gives, faster.

References:
    Frantar, Kurtic, Alistarh (2021), M-FAC, section 3.1, equations 2 to 5.
"""

from abc import ABC, abstractmethod
from math import isfinite

import torch
from torch import Tensor

from mfac_compress.mfac.numerics import PrecisionError, fits_float32
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.plan import InversePlan, uses_blocks


def check_damping(damping: float) -> float:
    """Return the damping λ if it is usable.

    Raises:
        ValueError: If it is not positive and finite.
    """
    if not (isfinite(damping) and damping > 0):
        raise ValueError(f"damping must be positive and finite. Got {damping}. Try 1e-5.")
    return float(damping)


class InverseFisher(ABC):
    """F⁻¹, factored once and applied many times.

    Attributes:
        damping: λ.
        num_gradients: m.
        size: d.
        plan: The representation chosen, the reason, and its cost.
    """

    plan: InversePlan
    damping: float
    num_gradients: int
    size: int

    @staticmethod
    def build(
        gradients: Tensor,
        damping: float = 1e-5,
        block_size: int | None = None,
        partition: BlockPartition | None = None,
    ) -> "InverseFisher":
        """Factor the Fisher of the given gradients.

        Args:
            gradients: G, one gradient per row. Shape ``[m, d]``. Not changed; kept by reference
                if the m x m representation is chosen.
            damping: λ > 0.
            block_size: B; None for the full matrix.
            partition: Blocks of differing size, instead of ``block_size``.

        Returns:
            The inverse in its smaller representation.

        Raises:
            ValueError: If the gradients are not a finite, non-empty ``[m, d]``, or the damping or
                block size are out of range.
            PrecisionError: If the damping is too small for float64: the relative error of an
                element of the diagonal might exceed 1e-5.

        Example:
            >>> G = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
            >>> InverseFisher.build(G, damping=0.5).diagonal()  # F = diag(0.5 + 0.5, 0.5 + 2)
            tensor([1.0000, 0.4000])
        """
        from mfac_compress.mfac.window_inverse import WindowInverse

        damping = check_damping(damping)
        _check_gradients(gradients)
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be at least 1, or None. Got {block_size}.")
        m, d = gradients.shape
        if partition is None:
            partition = BlockPartition.contiguous(d, block_size)
        if partition.size != d:
            raise ValueError(
                f"partition must cover the d = {d} columns of the gradients. "
                f"Got one of {partition.size}."
            )
        if not uses_blocks(partition, m):
            return WindowInverse(gradients, damping, partition)
        if not fits_float32(damping):
            return _block_inverse(gradients, damping, partition, torch.float64)
        try:
            return _block_inverse(gradients, damping, partition, torch.float32)
        except PrecisionError:
            return _block_inverse(gradients, damping, partition, torch.float64)

    @abstractmethod
    def ihvp(self, x: Tensor) -> Tensor:
        """Multiply F⁻¹ onto a vector. Shape ``[d]`` -> ``[d]``, dtype of ``x``.

        Raises:
            ValueError: If ``x`` is not ``[d]``.
        """

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal of F⁻¹. Shape ``[d]``, dtype of the gradients, at least float32."""

    @abstractmethod
    def element(self, j: int, k: int) -> float:
        """Return [F⁻¹]_jk; zero if j and k are in different blocks.

        Raises:
            ValueError: If an index is outside ``[0, d)``.
        """

    @abstractmethod
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

    @abstractmethod
    def solve_kept(self, x: Tensor, mask: Tensor) -> Tensor:
        """Multiply the inverse of the kept weights' Fisher onto a vector: F_KK⁻¹ x_K.

        Args:
            x: Shape ``[d]``.
            mask: True = kept. Shape ``[d]``.

        Returns:
            F_KK⁻¹ x_K, zero where masked out. Shape ``[d]``, dtype of ``x``.
        """

    def _check_vector(self, x: Tensor) -> None:
        if x.shape != (self.size,):
            raise ValueError(f"x must have the shape [{self.size}]. Got {list(x.shape)}.")

    def _check_indices(self, j: int, k: int) -> None:
        if not (0 <= j < self.size and 0 <= k < self.size):
            raise ValueError(f"Indices must lie in [0, {self.size}). Got {j} and {k}.")


def _block_inverse(
    gradients: Tensor, damping: float, partition: BlockPartition, products: torch.dtype
) -> InverseFisher:
    from mfac_compress.mfac.block_inverse import BlockFisher

    fisher = BlockFisher(partition, gradients.device, products)
    fisher.add(gradients)
    return fisher.invert(damping)


def _check_gradients(gradients: Tensor) -> None:
    if gradients.ndim != 2 or 0 in gradients.shape:
        raise ValueError(f"gradients must be [m, d], not empty. Got {list(gradients.shape)}.")
    if not gradients.is_floating_point():
        raise ValueError(f"gradients must be floating-point. Got {gradients.dtype}.")
