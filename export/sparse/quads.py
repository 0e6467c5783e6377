"""Quads (1x4 blocks), the storage format of sparse 8-bit weights in a model file.

Block-CSR like that of :mod:`format`, but a block is four consecutive inputs of one output, which
processors multiply and add in one instruction: four consecutive inputs of a matrix, or four
consecutive channels of a convolution at the same position of its window. A quad is stored if any of
its weights is nonzero. If the number of inputs is not a multiple of four, the last quad is padded
with zeros.
"""

from dataclasses import dataclass

import numpy as np

from mfac_compress.export.sparse.format import check_dense, starts_of

QUAD = 4


@dataclass(frozen=True)
class Packed1x4:
    """An 8-bit weight in 1x4 blocks.

    Attributes:
        values: int8, shape ``[stored, 4]``.
        indices: int32, shape ``[stored]``: quads of inputs, ascending within an output. For a
            convolution they are ``(quad of channels * kernel height + y) * kernel width + x``.
        starts: int32, shape ``[outputs + 1]``: where each output's indices begin.
        shape: Shape of the dense weight.
        group: Convolution groups; 1 for a matrix.
    """

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    shape: tuple[int, ...]
    group: int = 1


def pack_1x4(weight: np.ndarray, *, group: int = 1) -> Packed1x4:
    """Pack a dense weight.

    Args:
        weight: int8, shape ``[outputs, inputs]`` or ``[outputs, inputs / group, (h,) w]``.
        group: Convolution groups.
    Raises:
        ValueError: If the group or the weight's type or shape do not fit.

    >>> packed = pack_1x4(np.array([[0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 3, 4]], dtype=np.int8))
    >>> packed.values.tolist(), packed.indices.tolist(), packed.starts.tolist()
    ([[0, 2, 0, 0], [3, 4, 0, 0]], [0, 1], [0, 1, 2])
    """
    check_dense(weight, np.int8, group)
    outputs, inputs = weight.shape[:2]
    quads = -(-inputs // QUAD)
    padded = np.pad(
        weight.reshape(outputs, inputs, -1), ((0, 0), (0, quads * QUAD - inputs), (0, 0))
    )
    blocks = (
        padded.reshape(outputs, quads, QUAD, -1).transpose(0, 1, 3, 2).reshape(outputs, -1, QUAD)
    )
    rows, indices = np.nonzero(blocks.any(axis=2))
    return Packed1x4(
        values=np.ascontiguousarray(blocks[rows, indices]),
        indices=indices.astype(np.int32),
        starts=starts_of(rows, outputs),
        shape=weight.shape,
        group=group,
    )
