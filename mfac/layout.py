"""The place of each weight in the flat vector that this package computes with.

Throughout this package a model's weights of interest are one flat vector of length d: the chosen
tensors, one after the other, each in an order of its own. Gradients of several losses are rows of
``[m, d]``. Nothing but a :class:`Layout` knows the order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorSlice:
    """The place of one tensor: columns ``[start, stop)`` of the flat vector, and their order.

    Args:
        name: Its name.
        shape: Its shape.
        axes: Its axes from the slowest to the fastest; ``(0, 1, ...)`` is row-major order.
        start: First column.
        group: Number of neighbours along the slowest axis that stand side by side, as the fastest:
            ``axes=(0, 2, 3, 1), group=4`` stores ``[O, I, kh, kw]`` as ``[O/4, kh, kw, I, 4]``.
            It divides the axis.

    Example:
        >>> columns = TensorSlice("w", (4, 2), axes=(0, 1), start=0, group=2)
        >>> columns.flatten(torch.arange(8).view(4, 2))
        tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    start: int
    group: int = 1

    @property
    def size(self) -> int:
        """Number of columns."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + self.size

    def flatten(self, tensor: Tensor) -> Tensor:
        """Bring a tensor, or k of them, into this order. ``[..., *shape]`` -> ``[..., size]``."""
        first = tensor.ndim - len(self.shape)
        ordered = tensor.permute([*range(first), *(first + axis for axis in self.axes)])
        if self.group > 1:
            ordered = ordered.unflatten(first, (-1, self.group)).movedim(first + 1, -1)
        return ordered.reshape(*tensor.shape[:first], self.size)

    def unflatten(self, flat: Tensor) -> Tensor:
        """Invert :meth:`flatten` of one tensor. A view where ``group`` is 1."""
        ordered = tuple(self.shape[axis] for axis in self.axes)
        if self.group > 1:
            grouped = flat.view(-1, *ordered[1:], self.group)
            flat = grouped.movedim(-1, 1).flatten()
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        return flat.view(ordered).permute(back)


@dataclass(frozen=True)
class Layout:
    """The order of all columns of the flat vector.

    Args:
        tensors: The tensors, adjacent and in order.

    Raises:
        ValueError: If there is no tensor.

    Example:
        >>> layout = Layout.row_major({"a": (2, 3), "b": (4,)})
        >>> layout.size, [(t.name, t.start, t.stop) for t in layout.tensors]
        (10, [('a', 0, 6), ('b', 6, 10)])
    """

    tensors: tuple[TensorSlice, ...]

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("A layout must hold at least one tensor. Got none.")

    @classmethod
    def row_major(cls, shapes: Shapes) -> "Layout":
        """Tensors in the given order, each in row-major order."""
        tensors, start = [], 0
        for name, shape in shapes.items():
            tensors.append(TensorSlice(name, tuple(shape), tuple(range(len(shape))), start))
            start = tensors[-1].stop
        return cls(tuple(tensors))

    @property
    def size(self) -> int:
        """d, the number of columns."""
        return self.tensors[-1].stop

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """``(start, stop)`` of each tensor's columns."""
        return [(tensor.start, tensor.stop) for tensor in self.tensors]

    def __iter__(self) -> Iterator[TensorSlice]:
        return iter(self.tensors)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate tensors into a new flat vector ``[d]``, or batches of them into ``[k, d]``.

        Args:
            tensors: By name, ``[*shape]`` each or ``[k, *shape]`` each. There may be others.
        """
        return torch.cat([t.flatten(tensors[t.name].detach()) for t in self], dim=-1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the tensors that a flat vector ``[d]`` consists of, as views where they can be."""
        return {t.name: t.unflatten(flat[t.start : t.stop]) for t in self}

    def name_at(self, column: int) -> str:
        """Return the name of the tensor that a column of the flat vector belongs to."""
        return next(t.name for t in self if t.start <= column < t.stop)
