"""Block-CSR, the storage format of sparse weights in a model file.

A weight is a matrix ``[outputs, inputs]``; that of a convolution is ``[outputs, inputs per group,
kernel height, kernel width]``, or ``[outputs, inputs per group, kernel width]`` for one along one
axis, with all but the first axis flattened. The outputs of each convolution group are split into
groups of ``block`` consecutive ones (the last may be shorter) that share one ascending list of
inputs: an input is stored if any weight of the block is nonzero.
"""

from dataclasses import dataclass

import numpy as np

BLOCKS = (1, 4, 8, 16)


@dataclass(frozen=True)
class PackedWeight:
    """A weight in block-CSR.

    Attributes:
        values: float32, shape ``[stored, block]``; 0 beyond a group's last output.
        indices: int32, shape ``[stored]``: inputs, ascending within a group.
        starts: int32, shape ``[groups + 1]``: where each group's indices begin.
        block: Outputs in a group, one of ``BLOCKS``.
        shape: Shape of the dense weight.
        group: Convolution groups; 1 for a matrix.
    """

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    block: int
    shape: tuple[int, ...]
    group: int = 1


def check_dense(weight: np.ndarray, dtype: type[np.generic], group: int) -> None:
    """Check a weight that is to be packed.

    Raises:
        ValueError: If its type is not ``dtype``, its shape is not that of a layer's weight, or its
            outputs are not divisible by ``group``.
    """
    if weight.dtype != dtype or weight.ndim < 2 or weight.size == 0:
        raise ValueError(
            f"weight must be {np.dtype(dtype)} [outputs, inputs, ...] and not empty. "
            f"Got {weight.dtype} {weight.shape}."
        )
    if group < 1 or weight.shape[0] % group:
        raise ValueError(f"group must divide the weight's {weight.shape[0]} outputs. Got {group}.")


def starts_of(rows: np.ndarray, count: int) -> np.ndarray:
    """Return where each of ``count`` rows begins among stored blocks in ascending order. int32."""
    counts = np.bincount(rows, minlength=count)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def pack(weight: np.ndarray, *, block: int = 1, group: int = 1) -> PackedWeight:
    """Pack a dense weight.

    Args:
        weight: float32, shape ``[outputs, inputs]`` or ``[outputs, inputs / group, (h,) w]``.
        block: Consecutive outputs that share their inputs.
        group: Convolution groups.
    Raises:
        ValueError: If block, group or the weight's type or shape do not fit.

    >>> packed = pack(np.array([[0, 2, 0], [3, 0, 0]], dtype=np.float32))
    >>> packed.values.ravel().tolist(), packed.indices.tolist(), packed.starts.tolist()
    ([2.0, 3.0], [1, 0], [0, 1, 2])
    """
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {BLOCKS}. Got {block}.")
    check_dense(weight, np.float32, group)
    outputs = weight.shape[0] // group
    blocks = -(-outputs // block)
    matrix = weight.reshape(group, outputs, -1)
    matrix = np.pad(matrix, ((0, 0), (0, blocks * block - outputs), (0, 0)))
    matrix = matrix.reshape(group * blocks, block, -1)
    rows, inputs = np.nonzero((matrix != 0).any(axis=1))
    return PackedWeight(
        values=np.ascontiguousarray(matrix[rows, :, inputs]),
        indices=inputs.astype(np.int32),
        starts=starts_of(rows, len(matrix)),
        block=block,
        shape=weight.shape,
        group=group,
    )


def unpack(packed: PackedWeight) -> np.ndarray:
    """Return the dense weight. Shape ``packed.shape``."""
    outputs = packed.shape[0] // packed.group
    blocks = -(-outputs // packed.block)
    inputs = int(np.prod(packed.shape[1:]))
    matrix = np.zeros((packed.group * blocks, packed.block, inputs), dtype=np.float32)
    rows = np.repeat(np.arange(len(matrix)), np.diff(packed.starts))
    matrix[rows, :, packed.indices] = packed.values
    matrix = matrix.reshape(packed.group, blocks * packed.block, inputs)
    return matrix[:, :outputs].reshape(packed.shape)
