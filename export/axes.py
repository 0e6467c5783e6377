"""Axes whose length an ONNX file leaves open: which they are, and whether they came out so."""

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor

Axes = Mapping[str, Mapping[int, str]]
"""Names of open axes, by input and axis."""
BATCH_AXIS = "batch"


def open_axes(inputs: Mapping[str, Tensor], named: Axes, *, dynamic_batch: bool) -> Axes:
    """Check which axes are to be open, and add the batch.

    Args:
        inputs: The example by name. Each of shape ``[n, ...]``.
        named: Axes beside the batch. Those of the same name have the same length.
        dynamic_batch: Whether the first axis is open, too.
    Raises:
        ValueError: If there is no such input or axis, or the example's lengths do not fit.
    """
    lengths: dict[str, int] = {}
    for name, axes in named.items():
        if name not in inputs:
            raise _refused(f"be of the model's inputs: {', '.join(inputs)}", f"{name!r}")
        for axis, label in axes.items():
            length = _length(name, inputs[name], axis, label)
            if lengths.setdefault(label, length) != length:
                raise _refused(
                    "have the same name only where their lengths are the same",
                    f"{label!r} for lengths {lengths[label]} and {length}",
                )
    batch = {0: BATCH_AXIS} if dynamic_batch else {}
    return {name: {**batch, **named.get(name, {})} for name in inputs}


def torch_shapes(axes: Axes) -> tuple[tuple[dict[int, torch.export.Dim], ...]] | None:
    """The axes as ``dynamic_shapes`` of a ``forward(*inputs)``; None if none is open."""
    labels = {label for by_axis in axes.values() for label in by_axis.values()}
    dims = {label: torch.export.Dim(label) for label in sorted(labels)}
    shapes = tuple(
        {axis: dims[label] for axis, label in by_axis.items()} for by_axis in axes.values()
    )
    return (shapes,) if dims else None


def name_axes(model: ir.Model, axes: Axes) -> None:
    """Name the open axes of a graph, also where the exporter wrote an expression such as ``2*_h``.

    Args:
        model: Changed in place. Its inputs have their names.
        axes: As :func:`open_axes` returns them.
    Raises:
        ValueError: If the exporter fixed the length of one: it does so silently.
    """
    labels = {}
    for value in model.graph.inputs:
        for axis, label in axes[value.name].items():
            _check_open(value, axis, label)
            labels[value.shape[axis]] = label
    for value in model.graph.outputs:
        if BATCH_AXIS in labels.values() and value.shape:
            _check_open(value, 0, BATCH_AXIS)
    for value in (*model.graph.inputs, *model.graph.outputs):
        for axis, dim in enumerate(value.shape or ()):
            if dim in labels:
                value.shape[axis] = ir.SymbolicDim(labels[dim])


def is_fixed(reason: str, label: str | None = None) -> ValueError:
    """Return the error for a model that fixes the length of an axis that is to be open.

    Args:
        reason: What shows it.
        label: Name of the axis; None if it is not known which one it is.
    """
    if label == BATCH_AXIS:
        return ValueError(
            f"dynamic batch not possible: the model specialises the batch size ({reason}). "
            "Set export.dynamic_batch: false, or remove the constant from the model's forward "
            "(to the exporter len(x) is a constant, x.shape[0] is not)."
        )
    return ValueError(
        f"dynamic axis {label or ''} not possible: the model specialises its length ({reason}). "
        "Take it out of export.dynamic_axes, or remove the constant from the model's forward."
    )


def _length(name: str, example: Tensor, axis: int, label: str) -> int:
    if not 1 <= axis < example.ndim:
        raise _refused(
            "be axes that the input has, beside axis 0, which export.dynamic_batch opens: "
            f"{name!r} has the shape {list(example.shape)}",
            f"axis {axis}",
        )
    if not label.isidentifier() or label == BATCH_AXIS:
        raise _refused(f"have plain names other than {BATCH_AXIS!r}", f"{label!r}")
    length = example.shape[axis]
    if length < 2:
        raise _refused(
            "be longer than 1 in the first samples: PyTorch's exporter takes 1 for a constant",
            f"length {length} for axis {axis} of {name!r}",
        )
    return length


def _refused(must: str, found: str) -> ValueError:
    return ValueError(f"export.dynamic_axes must {must}. Got {found}.")


def _check_open(value: ir.Value, axis: int, label: str) -> None:
    dim = value.shape[axis]
    if isinstance(dim, int):
        what = "the batch axis" if label == BATCH_AXIS else f"axis {axis}"
        raise is_fixed(f"{what} of {value.name!r} came out as {dim}", label)
