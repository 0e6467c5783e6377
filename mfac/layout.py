"""The position of each tensor in the flat vector that this package computes with.

Throughout this package a model's weights of interest are one flat vector of length d: the chosen
parameters, in order, each in row-major order. Gradients of several losses are rows of ``[m, d]``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSlice:
    """The position of one tensor: columns ``[start, stop)`` of the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape)


class TensorLayout:
    """Names, shapes and positions of the tensors that make up the flat vector.

    Args:
        shapes: Name to shape, in the order of the flat vector.

    Raises:
        ValueError: If there is no tensor.

    Example:
        >>> layout = TensorLayout({"a": (2, 3), "b": (4,)})
        >>> layout.size, [(t.name, t.start, t.stop) for t in layout]
        (10, [('a', 0, 6), ('b', 6, 10)])
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if not shapes:
            raise ValueError("A layout must hold at least one tensor. Got none.")
        slices, start = [], 0
        for name, shape in shapes.items():
            slices.append(TensorSlice(name, tuple(shape), start))
            start = slices[-1].stop
        self._slices = tuple(slices)
        self.size = start

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "TensorLayout":
        """The layout of the given tensors, in their order."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    def __iter__(self) -> Iterator[TensorSlice]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the tensors into one new flat vector. Shape ``[d]``."""
        return torch.cat([tensors[t.name].detach().reshape(-1) for t in self])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector ``[d]`` in the shapes of the tensors."""
        return {t.name: flat[t.start : t.stop].view(t.shape) for t in self}

    def name_at(self, column: int) -> str:
        """Return the name of the tensor that a column of the flat vector belongs to."""
        return next(t.name for t in self if t.start <= column < t.stop)
