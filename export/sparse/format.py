"""The storage formats of sparse weights in a model file: block-CSR, and quads for int8.

A weight is a matrix ``[outputs, inputs]``; that of a convolution is ``[outputs, inputs per group,
kernel height, kernel width]``, or ``[outputs, inputs per group, kernel width]`` for one along one
axis. Its numbers are stored in blocks: a block is stored if any of its numbers is nonzero.

Block-CSR: a block is one input of ``block`` consecutive outputs: 1, 4, 8 or 16 in float32, 4 in
int8. All but the first axis of the weight are flattened into its inputs. The outputs of each
convolution group are split into rows of blocks; the last row of a group may be padded with zeros.

Quads (1x4), for int8: a block is four consecutive inputs of one output: four consecutive inputs of
a matrix, or four consecutive channels of a convolution at the same position of its window. The last
quad may be padded with zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

_QUAD = 4


class Block(NamedTuple):
    """What is stored together: ``size`` consecutive numbers along an axis of the weight."""

    size: int
    axis: Literal["outputs", "inputs"] = "outputs"


@dataclass(frozen=True)
class Packed:
    """A weight of which only nonzero blocks are stored.

    Attributes:
        values: Shape ``[stored, block]``.
        indices: int32, shape ``[stored]``: blocks of inputs, ascending within a row. Quads of a
            convolution are ``(quad of channels * kernel height + y) * kernel width + x``.
        starts: int32, shape ``[rows + 1]``: where each row's indices begin.
        block: What a block is.
        shape: Shape of the dense weight.
        group: Convolution groups; 1 for a matrix.
    """

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    block: Block
    shape: tuple[int, ...]
    group: int = 1


@dataclass(frozen=True)
class Format:
    """A storage format.

    Attributes:
        dtype: Type of the numbers.
        axis: Axis of its blocks.
        sizes: Block sizes.
        split: Splits a weight, for a block size and a number of groups. Returns ``[rows, blocks in
            a row, block]``.
    """

    dtype: type[np.generic]
    axis: Literal["outputs", "inputs"]
    sizes: tuple[int, ...]
    split: Callable[[np.ndarray, int, int], np.ndarray]

    def pack(self, weight: np.ndarray, block: int, group: int = 1) -> Packed:
        """Pack a dense weight.

        Args:
            weight: Shape ``[outputs, inputs]`` or ``[outputs, inputs / group, (h,) w]``.
            block: One of ``sizes``.
            group: Convolution groups.
        Raises:
            ValueError: If block, group or the weight's type or shape do not fit.
        """
        if block not in self.sizes:
            raise ValueError(f"block must be one of {self.sizes}. Got {block}.")
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
            block=Block(block, self.axis),
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


_FLOAT_BLOCKS = Format(np.float32, "outputs", (1, 4, 8, 16), _of_outputs)
_BYTE_BLOCKS = Format(np.int8, "outputs", (4,), _of_outputs)
_QUADS = Format(np.int8, "inputs", (_QUAD,), _of_inputs)


def pack(weight: np.ndarray, *, block: int = 1, group: int = 1) -> Packed:
    """Pack a float32 or int8 weight in block-CSR; arguments as those of :meth:`Format.pack`.

    >>> packed = pack(np.array([[0, 2, 0], [3, 0, 0]], dtype=np.float32))
    >>> packed.values.ravel().tolist(), packed.indices.tolist(), packed.starts.tolist()
    ([2.0, 3.0], [1, 0], [0, 1, 2])
    """
    chosen = _BYTE_BLOCKS if weight.dtype == np.int8 else _FLOAT_BLOCKS
    return chosen.pack(weight, block, group)


def pack_1x4(weight: np.ndarray, *, group: int = 1) -> Packed:
    """Pack an int8 weight in quads; arguments as those of :meth:`Format.pack`.

    >>> packed = pack_1x4(np.array([[0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 3, 4]], dtype=np.int8))
    >>> packed.values.tolist(), packed.indices.tolist(), packed.starts.tolist()
    ([[0, 2, 0, 0], [3, 4, 0, 0]], [0, 1], [0, 1, 2])
    """
    return _QUADS.pack(weight, _QUAD, group)


def pack_as(weight: np.ndarray, block: Block, group: int = 1) -> Packed:
    """Pack a weight in the format with such blocks."""
    if block.axis == "inputs":
        return _QUADS.pack(weight, block.size, group)
    return pack(weight, block=block.size, group=group)


def possible_blocks(dtype: np.dtype) -> tuple[Block, ...]:
    """Return the blocks in which a weight can be stored; the smallest and most general first."""
    formats = (_FLOAT_BLOCKS, _BYTE_BLOCKS, _QUADS)
    return tuple(Block(size, f.axis) for f in formats if f.dtype == dtype for size in f.sizes)
