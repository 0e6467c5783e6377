"""What flows between the operators of a converted graph: tensors, and numbers known beforehand.

Exporters compute shapes by operators (Shape, Gather, Concat, Reshape). Kept as Python's numbers
they stay sizes, which PyTorch can trace for any batch; as tensors they would be data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_INTEGERS = 4096
"""Larger constants of integers are tensors: tables of positions and the like, not shapes."""
MOST_FLOATS = 8
"""Larger constants of floats are tensors: anything but scales, bounds and exponents."""
_TOO_MANY = 2**20
MOST_ELEMENTS = 2**29
"""Of a tensor that an operator makes out of a few numbers."""


@dataclass(frozen=True, eq=False)
class Known:
    """Known or truth values that are known without data: constants and sizes of tensors.

    Args:
        array: Of Python's numbers, or of PyTorch's symbols for sizes. Dtype object.
        dtype: Of the tensor that ONNX has in their place.
    """

    array: np.ndarray
    dtype: torch.dtype = torch.int64

    @classmethod
    def of(cls, values: Any, dtype: torch.dtype = torch.int64) -> "Known":
        """Numbers from one of them, or from nested sequences.

        Raises:
            ValueError: If they are far more than describe shapes.
        """
        array = np.asarray(values, dtype=object)
        if array.size > _TOO_MANY:
            raise ValueError(f"it computes {array.size:,} numbers that depend on no input")
        return cls(array, dtype)

    @property
    def is_integer(self) -> bool:
        """Whether they are integers or truth values: floats are computed with as tensors only."""
        return not self.dtype.is_floating_point

    def tensor(self, device: torch.device) -> Tensor:
        """The same as a tensor."""
        flat = self.array.flatten().tolist()
        if all(isinstance(number, int | float) for number in flat):
            return torch.tensor(self.array.tolist(), dtype=self.dtype, device=device)
        numbers = [torch.full((), number, dtype=self.dtype, device=device) for number in flat]
        return torch.stack(numbers).reshape(self.array.shape)


Value = Tensor | Known | None
"""None for an optional input that is left out."""


def numbers(value: Value, what: str = "its shape") -> list[Any]:
    """An input that says how an operator works, as a list of numbers.

    Raises:
        ValueError: If it depends on the values of the model's inputs.
    """
    if isinstance(value, Known):
        return value.array.flatten().tolist()
    raise ValueError(f"{what} depends on the values of the inputs")


def number(value: Value, what: str = "its parameter") -> Any:
    """The one number of an input, as :func:`numbers`."""
    (found,) = numbers(value, what)
    return found


def device_of(values: Sequence[Value], default: torch.device) -> torch.device:
    """Where the first tensor of some values is."""
    return next((value.device for value in values if isinstance(value, Tensor)), default)


def as_tensors(values: Sequence[Value], default: torch.device) -> list[Tensor | None]:
    """Values as tensors, on the device of the first that is one."""
    device = device_of(values, default)
    return [value.tensor(device) if isinstance(value, Known) else value for value in values]


def are_fixed(numbers: Sequence[Any]) -> bool:
    """Whether numbers are integers and not sizes that the tracer keeps open."""
    return all(isinstance(number, int) for number in numbers)


def check_size(sizes: Sequence[Any]) -> None:
    """Refuse a tensor that would fill the memory.

    Raises:
        ValueError: If it has more than :data:`MOST_ELEMENTS`.
    """
    known = [size for size in sizes if are_fixed([size])]
    if prod(known) > MOST_ELEMENTS:
        raise ValueError(f"its output would have the shape {known}")
