"""The storage formats of sparse weights in a model file: block-CSR and quads.

A weight is a matrix ``[outputs, inputs]``; that of a convolution is ``[outputs, inputs per group,
kernel height, kernel width]``, or ``[outputs, inputs per group, kernel width]`` for one along one
axis. Its numbers are stored in blocks: a block is stored if any of its numbers is nonzero.

Block-CSR, for float32: a block is one input of ``block`` consecutive outputs. All but the first
axis of the weight are flattened into its inputs. The outputs of each convolution group are split
into rows of blocks; the last row of a group may be padded with zeros.

Quads (1x4), for int8: a block is four consecutive inputs of one output, which processors multiply
and add in one instruction: four consecutive inputs of a matrix, or four consecutive channels of a
convolution at the same position of its window. The last quad may be padded with zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_QUAD = 4


@dataclass(frozen=True)
class Packed:
    """A weight of which only nonzero blocks are stored.

    Attributes:
        values: Shape ``[stored, block]``.
        indices: int32, shape ``[stored]``: blocks of inputs, ascending within a row. Quads of a
            convolution are ``(quad of channels * kernel height + y) * kernel width + x``.
        starts: int32, shape ``[rows + 1]``: where each row's indices begin.
        block: Numbers in a block.
        shape: Shape of the dense weight.
        group: Convolution groups; 1 for a matrix.
    """

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    block: int
    shape: tuple[int, ...]
    group: int = 1


@dataclass(frozen=True)
class Format:
    """A storage format.

    Attributes:
        dtype: Type of the numbers.
        blocks: Block sizes.
        split: Splits a weight, for a block size and a number of groups. Returns ``[rows, blocks in
            a row, block]``.
    """

    dtype: type[np.generic]
    blocks: tuple[int, ...]
    split: Callable[[np.ndarray, int, int], np.ndarray]

    def pack(self, weight: np.ndarray, block: int, group: int = 1) -> Packed:
        """Pack a dense weight.

        Args:
            weight: Shape ``[outputs, inputs]`` or ``[outputs, inputs / group, (h,) w]``.
            block: One of ``blocks``.
            group: Convolution groups.
        Raises:
            ValueError: If block, group or the weight's type or shape do not fit.
        """
        if block not in self.blocks:
            raise ValueError(f"block must be one of {self.blocks}. Got {block}.")
        if weight.dtype != self.dtype or weight.ndim < 2 or weight.size == 0:
            raise ValueError(
                f"weight must be {np.dtype(self.dtype)} [outputs, inputs, ...] and not empty. "
                f"Got {weight.dtype} {weight.shape}."
            )
        if group < 1 or weight.shape[0] % group:
            raise ValueError(
                f"group must divide the weight's {weight.shape[0]} outputs. Got {group}."
            )
        blocks = self.split(weight, block, group)
        rows, indices = np.nonzero(blocks.any(axis=2))
        counts = np.bincount(rows, minlength=len(blocks))
        return Packed(
            values=np.ascontiguousarray(blocks[rows, indices]),
            indices=indices.astype(np.int32),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            block=block,
            shape=weight.shape,
            group=group,
        )


def _of_outputs(weight: np.ndarray, block: int, group: int) -> np.ndarray:
    """Split into blocks of consecutive outputs."""
    outputs = weight.shape[0] // group
    rows = -(-outputs // block)
    padded = np.pad(
        weight.reshape(group, outputs, -1), ((0, 0), (0, rows * block - outputs), (0, 0))
    )
    return padded.reshape(group * rows, block, -1).transpose(0, 2, 1)


def _of_inputs(weight: np.ndarray, block: int, group: int) -> np.ndarray:
    """Split into blocks of consecutive inputs; convolution groups do not matter."""
    outputs, inputs = weight.shape[:2]
    blocks = -(-inputs // block)
    padded = np.pad(
        weight.reshape(outputs, inputs, -1), ((0, 0), (0, blocks * block - inputs), (0, 0))
    )
    windows = padded.reshape(outputs, blocks, block, -1).transpose(0, 1, 3, 2)
    return windows.reshape(outputs, -1, block)


BLOCK_CSR = Format(np.float32, (1, 4, 8, 16), _of_outputs)
QUADS = Format(np.int8, (_QUAD,), _of_inputs)


def pack(weight: np.ndarray, *, block: int = 1, group: int = 1) -> Packed:
    """Pack a float32 weight in block-CSR; arguments as those of :meth:`Format.pack`.

    >>> packed = pack(np.array([[0, 2, 0], [3, 0, 0]], dtype=np.float32))
    >>> packed.values.ravel().tolist(), packed.indices.tolist(), packed.starts.tolist()
    ([2.0, 3.0], [1, 0], [0, 1, 2])
    """
    return BLOCK_CSR.pack(weight, block, group)


def pack_1x4(weight: np.ndarray, *, group: int = 1) -> Packed:
    """Pack an int8 weight in quads; arguments as those of :meth:`Format.pack`.

    >>> packed = pack_1x4(np.array([[0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 3, 4]], dtype=np.int8))
    >>> packed.values.tolist(), packed.indices.tolist(), packed.starts.tolist()
    ([[0, 2, 0, 0], [3, 4, 0, 0]], [0, 1], [0, 1, 2])
    """
    return QUADS.pack(weight, _QUAD, group)
