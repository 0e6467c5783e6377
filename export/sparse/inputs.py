"""Random inputs for a model of which only the file is known."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.graph import is_open, needed_inputs
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.workload import Workload

_BATCH = None
"""Marks the dynamic batch axis."""
_Axes = tuple[int | None, ...]


class ShapeError(ValueError):
    """A shape is missing or does not fit the file."""


class RandomInputs:
    """Random inputs of the file's types and shapes: floats normal, integers 0 or 1, booleans true.

    The first axis of an input is the batch if it is dynamic.

    Attributes:
        given_batches: The batch sizes in ``shapes``.

    Args:
        path: ONNX file.
        shapes: Shapes by name, for inputs with dynamic axes other than the batch. The batch size in
            them is only recorded.
        seed: Seed of the random generator.
    Raises:
        ShapeError: If there is no such input, or its shape is missing or does not fit the file.
        ValueError: If an input is not a tensor of numbers, or the file cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shapes: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        model = read_model(path)
        given = dict(shapes or {})
        inputs = needed_inputs(model)
        names = [value.name for value in inputs]
        for name in given:
            if name not in names:
                raise ShapeError(f"Shapes must be of the inputs {', '.join(names)}. Got {name}.")
        self._types = {value.name: _dtype(value) for value in inputs}
        self._axes = {value.name: _axes(value, given.get(value.name)) for value in inputs}
        self.given_batches = {
            given[name][0] for name, axes in self._axes.items() if name in given and _BATCH in axes
        }
        self._seed = seed

    @property
    def fixed_batch(self) -> int | None:
        """The batch size of a file that takes no other; None if it is dynamic."""
        if any(_BATCH in axes for axes in self._axes.values()):
            return None
        return next((axes[0] for axes in self._axes.values() if axes), 1)

    def __call__(self, workload: Workload) -> Feeds:
        """Generate inputs of a workload's batch size.

        Raises:
            ValueError: If the file does not take this batch size, or it does not fit into memory.
        """
        batch_size = workload.batch_size
        if self.fixed_batch not in (None, batch_size):
            raise ValueError(
                f"The batch size must be {self.fixed_batch}, for which the file was exported. Got "
                f"{batch_size}."
            )
        rng = np.random.default_rng(self._seed)
        shapes = {
            name: [batch_size if a is _BATCH else a for a in axes]
            for name, axes in self._axes.items()
        }
        try:
            return {name: _draw(rng, self._types[name], shape) for name, shape in shapes.items()}
        except (MemoryError, OverflowError, ValueError) as error:  # ValueError: beyond any address
            raise ValueError(
                f"Inputs must fit into memory. At batch size {batch_size} their shapes are "
                f"{shapes}. Give a smaller batch size or smaller shapes."
            ) from error


def _axes(value: ir.Value, given: Sequence[int] | None) -> _Axes:
    """Return the lengths of an input's axes, with ``_BATCH`` for a dynamic batch."""
    if value.shape is None:
        return _axes_of_any_number(value.name, given)
    axes = list(value.shape)
    open_axes = [is_open(axis) for axis in axes]
    both = list(zip(axes, open_axes, strict=True))
    said = [getattr(a, "value", None) or "?" if o else a for a, o in both]
    if given is None and any(open_axes[1:]):
        lengths = ["128" if o else str(a) for a, o in both]
        example = ",".join(["1" if open_axes[0] else lengths[0], *lengths[1:]])
        raise ShapeError(
            f"The shape of input {value.name} must be known: the file leaves axes of {said} open. "
            f"Give it, for example {value.name}={example}."
        )
    lengths = [0 if o else a for a, o in both] if given is None else list(given)
    fits = len(lengths) == len(axes) and all(
        o or length == a for length, (a, o) in zip(lengths, both, strict=True)
    )
    if not fits or any(length < 1 for length in lengths[1:]):
        raise ShapeError(f"The shape of input {value.name} must fit {said}. Got {lengths}.")
    return tuple(_BATCH if n == 0 and open_axes[0] else length for n, length in enumerate(lengths))


def _axes_of_any_number(name: str, given: Sequence[int] | None) -> _Axes:
    """Return the same for an input of which the file does not give the number of axes."""
    if not given:
        raise ShapeError(
            f"The shape of input {name} must be known: the file does not say how many axes it has. "
            f"Give it with the batch first, for example {name}=1,128."
        )
    return (_BATCH, *given[1:])


def _dtype(value: ir.Value) -> np.dtype:
    is_tensor = isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.UNDEFINED
    dtype = np.dtype(value.dtype.numpy()) if is_tensor else None
    if dtype is None or dtype.kind not in "fiub":
        raise ValueError(
            f"Input {value.name} must be a tensor of numbers, so that random inputs can be made."
        )
    return dtype


def _draw(rng: np.random.Generator, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    if dtype.kind == "f":
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    # 0 and 1 are valid indices into any vocabulary.
    return rng.integers(2, size=shape, dtype=np.int8).astype(dtype, copy=False)
