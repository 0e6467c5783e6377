"""The operators that can be converted, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mfac_compress.export.from_onnx.values import Known, Value, as_tensors

Compute = Callable[..., Any]
"""From an operator's inputs to its output, or to a tuple of them."""


class UnsupportedError(ValueError):
    """An operator, or one of its settings, that cannot be converted; the message says which."""


@dataclass(eq=False)
class Place:
    """Where the module is that runs now; each says so when it begins.

    Copies of a module share the functions that compute its steps, and may be on another device: so
    they share this as well.

    Args:
        device: Of its parameters.
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def __deepcopy__(self, _memo: object) -> "Place":
        return self


@dataclass(frozen=True)
class Operator:
    """What an operator is asked to do.

    Args:
        kind: Its name in ONNX.
        opset: Version of the standard operators.
        attributes: As Python values.
        outputs: Number of outputs.
        first_only: Whether none but the first of them is read.
        batch: Number of samples for which the file was exported; None where it takes any. The
            module takes any number all the same.
        place: Where the model is, when it runs.
    """

    kind: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int
    first_only: bool
    batch: int | None
    place: Place

    def device(self) -> torch.device:
        """Where tensors are made that depend on no other."""
        return self.place.device

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def refuse(self, reason: str) -> UnsupportedError:
        """The error for a setting that cannot be converted."""
        return UnsupportedError(reason)


Maker = Callable[[Operator], Compute]
OPERATORS: dict[str, Maker] = {}
"""Standard operators by name: what makes the function that computes one."""


def operator(*kinds: str, sizes: bool = False) -> Callable[[Maker], Maker]:
    """Register what makes the function of an operator.

    Args:
        kinds: Names of operators.
        sizes: Whether the function takes :class:`Known` as they are. Otherwise they become
            tensors before it is called.
    """

    def register(maker: Maker) -> Maker:
        for kind in kinds:
            OPERATORS[kind] = maker if sizes else _with_tensors(maker)
        return maker

    return register


def _with_tensors(maker: Maker) -> Maker:
    def make(node: Operator) -> Compute:
        compute = maker(node)
        return lambda *values: compute(*as_tensors(values, node.device()))

    return make


def only_integers(values: tuple[Value, ...]) -> bool:
    """Whether all values that are given are integers known without data."""
    return all(value is None or (isinstance(value, Known) and value.is_integer) for value in values)
