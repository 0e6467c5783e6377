"""Trace where a layout takes each of its elements from, by running it on their numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.session import load
from mfac_compress.export.sparse.compose import remove_unused
from mfac_compress.export.sparse.files import temporary_file
from mfac_compress.export.sparse.graph import values_by_name
from mfac_compress.export.sparse.probe import Feeds, Shapes, unoptimised

_RADIX = 2**16
"""Numbers are traced in two digits, so that they are exact in float32, and near enough when they
are multiplied by a scale and divided by it."""
_MOST_ELEMENTS = _RADIX**2


@dataclass(frozen=True, eq=False)
class Trace:
    """What a value is made of.

    Attributes:
        numbers: Of the elements that its own are, ``[...]`` of its shape, as float64.
        factor: By which all of them are multiplied.
    """

    numbers: np.ndarray
    factor: float


def numbered(shapes: Shapes, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Number the elements of some values, without a number twice.

    Args:
        shapes: Of values, by name.
        names: The values.
    Returns:
        The numbers of each value's elements, ``[...]`` of its shape.
    """
    numbers, first = {}, 0
    for name in dict.fromkeys(names):
        count = int(np.prod(shapes[name]))
        numbers[name] = np.arange(first, first + count).reshape(shapes[name])
        first += count
    return numbers


class Layouts:
    """A model of the layouts between some values and others, which runs on numbers of our choice.

    Args:
        model: Not changed.
        given: Names of float32 values of its main graph, which become inputs.
        made: Names of values that depend on these; they may also depend on the shapes of any.
    Raises:
        ValueError: If ONNX Runtime cannot load it, since the values are not float32.
    """

    def __init__(self, model: ir.Model, given: Sequence[str], made: Sequence[str]) -> None:
        model = model.clone()
        graph = model.graph
        values = values_by_name(graph)
        graph.outputs.clear()  # first: the uses of an output cannot be replaced
        for name in dict.fromkeys(given):
            new = ir.val(_input_of(name), ir.DataType.FLOAT)
            ir.convenience.replace_all_uses_with(values[name], new)
            graph.inputs.append(new)
            values[name] = new
        for place, name in enumerate(made):
            # A copy, since a layout may change nothing: its value is then an input.
            copy = ir.val(f"made {place}", ir.DataType.FLOAT)
            graph.append(ir.node("Identity", [values[name]], outputs=[copy]))
            graph.outputs.append(copy)
        remove_unused(graph)
        with temporary_file(model) as path:
            self._session = load(str(path), unoptimised())

    def trace(self, numbers: Mapping[str, np.ndarray], feeds: Feeds) -> list[Trace] | None:
        """Trace what is made.

        Args:
            numbers: Of the elements of what is given, none twice.
            feeds: Inputs of the first model, for which the given values have these shapes.
        Returns:
            What each value of ``made`` is made of. None if one of them is empty, or not a multiple
            of given elements.
        Raises:
            ValueError: If the layouts do not run on their own.
        """
        if sum(array.size for array in numbers.values()) > _MOST_ELEMENTS:
            return None
        ones = self.run({name: np.ones(array.shape) for name, array in numbers.items()}, feeds)
        factors = [float(array.flat[0]) if array.size else 0.0 for array in ones]
        if 0.0 in factors or any(np.any(a != f) for a, f in zip(ones, factors, strict=True)):
            return None
        low = self.run({name: array % _RADIX for name, array in numbers.items()}, feeds)
        high = self.run({name: array // _RADIX for name, array in numbers.items()}, feeds)
        return [
            Trace(np.rint(a / factor) + _RADIX * np.rint(b / factor), factor)
            for a, b, factor in zip(low, high, factors, strict=True)
        ]

    def run(self, given: Mapping[str, np.ndarray], feeds: Feeds) -> list[np.ndarray]:
        """Compute what is made, as float64, from values and the inputs of the first model.

        Raises:
            ValueError: If the layouts do not run on their own.
        """
        inputs = {_input_of(name): array.astype(np.float32) for name, array in given.items()}
        try:
            made = self._session.run(None, {**feeds, **inputs})
        except Exception as error:
            raise ValueError("the layouts must run on their own") from error
        return [array.astype(np.float64) for array in made]


def _input_of(name: str) -> str:
    return f"given {name}"
