"""The Fisher as B x B diagonal blocks, and its inverse: the smaller representation for B < m.

The blocks grow as gradients arrive, so the gradients themselves are never kept: O(dB) memory.
"""

import torch
from torch import Tensor

from mfac_compress.mfac.inverse import InverseFisher, check_damping
from mfac_compress.mfac.partition import BlockPartition

# Triangular inverses and joint solves go through the blocks this many matrix elements at a time,
# which bounds what they need beside the factors.
_CHUNK_ELEMENTS = 1 << 23
# One update of the sums reads and writes all of them, so gradients wait for company.
_ROWS_AT_ONCE = 64


class BlockFisher:
    """Σ gᵢgᵢᵀ on diagonal blocks, undamped, summed in float64.

    Args:
        partition: The blocks.
        device: Where the sums live.
    """

    def __init__(self, partition: BlockPartition, device: torch.device | str = "cpu") -> None:
        self.partition = partition
        self.num_gradients = 0
        self.sums = [
            torch.zeros(run.count, run.size, run.size, dtype=torch.float64, device=device)
            for run in partition
        ]
        self._waiting: list[Tensor] = []
        self._dtype = torch.float32

    def add(self, gradients: Tensor) -> None:
        """Add k gradients. Shape ``[k, d]``.

        Raises:
            ValueError: If they do not have the partition's d columns.
        """
        if gradients.ndim != 2 or gradients.shape[1] != self.partition.size:
            raise ValueError(
                f"gradients must be [k, {self.partition.size}]. Got {list(gradients.shape)}."
            )
        self.num_gradients += gradients.shape[0]
        self._dtype = torch.promote_types(self._dtype, gradients.dtype)
        self._waiting.append(gradients)
        if sum(part.shape[0] for part in self._waiting) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Bring the gradients that still wait into the sums."""
        if not self._waiting:
            return
        gradients = torch.cat(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting = []
        for run, total in zip(self.partition, self.sums, strict=True):
            blocks = run.cut(gradients).to(total.dtype).transpose(0, 1)  # [count, k, size]
            total.baddbmm_(blocks.mT, blocks)

    def invert(self, damping: float) -> "BlockInverse":
        """Damp, factor. The sums stay as they are, so another damping costs no gradients.

        Raises:
            ValueError: If no gradient was added, or the damping is not positive.
        """
        damping = check_damping(damping)
        if not self.num_gradients:
            raise ValueError("A Fisher needs at least one gradient. Got none.")
        self.flush()
        factors = [_factor(total / self.num_gradients, damping) for total in self.sums]
        return BlockInverse(self.partition, factors, damping, self.num_gradients, self._dtype)

    def state(self) -> dict[str, Tensor]:
        """What :meth:`load_state` reads back."""
        self.flush()
        count = torch.tensor(self.num_gradients)
        return {"num_gradients": count, **{str(i): total for i, total in enumerate(self.sums)}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the sums of another Fisher of the same partition."""
        self._waiting = []
        self.num_gradients = int(state["num_gradients"])
        self.sums = [state[str(i)] for i in range(len(self.sums))]


class BlockInverse(InverseFisher):
    """F⁻¹ as Cholesky factors of the blocks of F.

    Args:
        partition: The blocks.
        factors: L of F_b = LLᵀ, float64. Shape ``[count, size, size]`` for each run.
        damping: λ, already part of F.
        num_gradients: m.
        dtype: Of the diagonal.
    """

    def __init__(
        self,
        partition: BlockPartition,
        factors: list[Tensor],
        damping: float,
        num_gradients: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.partition = partition
        self.damping = damping
        self.num_gradients = num_gradients
        self.size = partition.size
        self._factors = factors
        self._dtype = dtype

    def ihvp(self, x: Tensor) -> Tensor:
        self._check_vector(x)
        solved = [
            torch.cholesky_solve(run.cut(x).to(factor).unsqueeze(-1), factor).squeeze(-1)
            for run, factor in zip(self.partition, self._factors, strict=True)
        ]
        return self.partition.join(solved).to(x)

    def diagonal(self) -> Tensor:
        return self.partition.join([_inverse_diagonal(L) for L in self._factors]).to(self._dtype)

    def element(self, j: int, k: int) -> float:
        self._check_indices(j, k)
        (run, block, row), (other_run, other_block, column) = map(self.partition.locate, (j, k))
        if (run, block) != (other_run, other_block):
            return 0.0
        factor = self._factors[run][block]
        unit = torch.zeros(factor.shape[0], 1, dtype=factor.dtype, device=factor.device)
        unit[column] = 1
        return torch.cholesky_solve(unit, factor)[row].item()

    def joint_update(self, weights: Tensor, mask: Tensor) -> Tensor:
        self._check_vector(weights)
        self._check_vector(mask)
        updated = []
        for run, factor in zip(self.partition, self._factors, strict=True):
            w, keep = run.cut(weights).to(factor), run.cut(mask)
            parts = [
                _joint_blocks(L, w_part, keep_part)
                for L, w_part, keep_part in zip(
                    *(x.split(_blocks_at_once(run.size)) for x in (factor, w, keep)), strict=True
                )
            ]
            updated.append(torch.cat(parts))
        return self.partition.join(updated).to(weights)


def _factor(blocks: Tensor, damping: float) -> Tensor:
    """Cholesky factors of the blocks with λ on their diagonals. ``blocks`` is overwritten."""
    blocks.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, info = torch.linalg.cholesky_ex(blocks)
    if info.any():
        raise ValueError(
            f"damping must be large enough for float64 to factor the Fisher. Got {damping}, "
            "which vanishes beside its diagonal. Try ten times more, or scale the loss down."
        )
    return factor


def _blocks_at_once(size: int) -> int:
    return max(1, _CHUNK_ELEMENTS // size**2)


def _inverse_diagonal(factor: Tensor) -> Tensor:
    """Diagonal of (LLᵀ)⁻¹, the squared column norms of L⁻¹. Shape ``[count, size]``."""
    size = factor.shape[-1]
    identity = torch.eye(size, dtype=factor.dtype, device=factor.device)
    return torch.cat(
        [
            torch.linalg.solve_triangular(part, identity, upper=False).square().sum(dim=-2)
            for part in factor.split(_blocks_at_once(size))
        ]
    )


def _joint_blocks(factor: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """Joint update of several blocks. Shapes ``[n, B, B]``, ``[n, B]``, ``[n, B]``.

    The kept and the removed set differ from block to block. Writing 1 on the diagonal of each
    removed row and column makes them one batch: the solution is zero there.
    """
    removed = weights.masked_fill(keep, 0).unsqueeze(-1)
    fisher = factor @ factor.mT
    coupling = (fisher @ removed).masked_fill(~keep.unsqueeze(-1), 0)  # F_KQ w_Q
    kept = fisher * (keep.unsqueeze(-1) & keep.unsqueeze(-2))
    kept.diagonal(dim1=-2, dim2=-1).masked_fill_(~keep, 1)
    shift = torch.cholesky_solve(coupling, torch.linalg.cholesky(kept)).squeeze(-1)
    return (weights + shift).masked_fill(~keep, 0)
