"""Trace a PyTorch model into an ONNX graph in memory, with errors that say what to do."""

import contextlib
from collections.abc import Iterator

import onnx_ir as ir
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfac_compress.export.attention_axes import FourAxes
from mfac_compress.export.axes import BATCH_AXIS, Axes, is_fixed, name_axes, open_axes, torch_shapes
from mfac_compress.export.device import device_of
from mfac_compress.export.names import input_names, output_names
from mfac_compress.export.silence import silence
from mfac_compress.mfac.batch import (
    FlatModel,
    Tree,
    call,
    concatenate,
    evaluating,
    map_tensors,
    named_tensors,
    size,
)


def capture(
    model: nn.Module,
    example: Tree,
    *,
    opset: int,
    dynamic_batch: bool,
    input_name: str,
    output_name: str,
    dynamic_axes: Axes | None = None,
) -> ir.Model:
    """Trace a model into an ONNX graph.

    Args:
        model: Any module, also the module of an exported program, that returns a tree of tensors.
            Not changed.
        example: Inputs with which the model is traced. Each of shape ``[n, ...]``.
        opset: Version of the ONNX operators.
        dynamic_batch: Make the first axis dynamic, under the name ``batch``. Otherwise it is n.
        input_name: Name of a lone input; others: :func:`~mfac_compress.export.names.input_names`.
        output_name: Name of a lone output; others likewise.
        dynamic_axes: Names of further dynamic axes. Those of the same name have the same length.
    Returns:
        The graph. Its tensors may share memory with the model's parameters.
    Raises:
        ValueError: If a name is taken, the model cannot be run, traced or translated, it returns
            anything other than tensors ``[n, ...]``, or it fixes the length of a dynamic axis.
    """
    # Cloned for its strides: an axis of size one may have any stride, and with some of them the
    # tracer takes images of one channel for channels-last and adds index arithmetic to the graph.
    example = map_tensors(
        lambda tensor: tensor.to(device_of(model, tensor)).clone(
            memory_format=torch.contiguous_format
        ),
        example,
    )
    with evaluating(model):
        inputs = dict(zip(input_names(model, example, input_name), _leaves(example), strict=True))
        outputs = output_names(_outputs(model, example), output_name)
        _check_names(model, [*inputs], outputs)
        axes = open_axes(inputs, dynamic_axes or {}, dynamic_batch=dynamic_batch)
        if dynamic_batch and size(example) == 1:
            # The tracer treats an axis of size one as a constant.
            example = concatenate([example, example])
        try:
            # The exporter can translate the plain form of attention. The kernels that PyTorch would
            # choose on this machine, and for gradients, order axes differently in memory, and the
            # exporter fails on views of them.
            with (
                silence(),
                _open_recurrences(),
                _separate_zeros(),
                torch.no_grad(),
                sdpa_kernel(SDPBackend.MATH),
                FourAxes(),
            ):
                program = torch.onnx.export(
                    FlatModel(model, example, _leaves),
                    _leaves(example),
                    dynamo=True,
                    opset_version=opset,
                    dynamic_shapes=torch_shapes(axes),
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise _explain(error, axes) from error
    graph = program.model
    _check_opset(graph, opset)
    _name(graph, [*inputs], outputs)
    name_axes(graph, axes)
    return graph


def _leaves(tree: Tree) -> tuple[Tensor, ...]:
    return tuple(tensor for _, tensor in named_tensors(tree))


def _outputs(model: nn.Module, example: Tree) -> Tree:
    """Run the model once: the tracer's own errors are hard to read, Python's are not."""
    rows, shapes = size(example), _shapes(example)
    try:
        with torch.no_grad():
            outputs = call(model, example)
    except Exception as error:
        raise ValueError(
            f"The model must run on its example input of {shapes}. It raised "
            f"{type(error).__name__}: {error}. Check that the data has the shape and dtype that "
            "the model expects."
        ) from error
    returned = _leaves(outputs)
    other = [type(leaf).__name__ for leaf in returned if not isinstance(leaf, Tensor)]
    if other or not returned:
        raise ValueError(
            "The model must return one tensor, or a tuple or dict of tensors. Got "
            f"{other[0] if other else 'no tensor'}. Wrap it in a module whose forward returns the "
            "tensors to be exported."
        )
    if any(tensor.shape[:1] != (rows,) for tensor in returned):
        raise ValueError(
            f"The model must return one row per sample. Got an output of {_shapes(outputs)} for an "
            f"input of {shapes}. "
            "Wrap it in a module whose forward keeps the batch as the first axis."
        )
    return outputs


def _shapes(tree: Tree) -> str:
    named = [(name, list(tensor.shape)) for name, tensor in named_tensors(tree)]
    if len(named) == 1 and not named[0][0]:
        return f"shape {named[0][1]}"
    return f"shapes {', '.join(f'{name} {shape}' for name, shape in named)}"


def _check_names(model: nn.Module, inputs: list[str], outputs: list[str]) -> None:
    """Refuse names in use: an input with the name of a weight would replace it."""
    taken = {"", *(name for name, _ in (*model.named_parameters(), *model.named_buffers()))}
    of_inputs = [("export.input_name", "input", name) for name in inputs]
    of_outputs = [("export.output_name", "output", name) for name in outputs]
    for key, kind, name in (*of_inputs, *of_outputs):
        if name in taken:
            raise ValueError(
                f"The name of an {kind} ({key}, or the key of a dict) must be one that no "
                "parameter of the model and no other input or output has. "
                f"Got {name!r}. Choose another."
            )
        taken.add(name)


def _name(model: ir.Model, inputs: list[str], outputs: list[str]) -> None:
    """Name a graph's inputs, outputs and initializers, and free these names of other values."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        value.name = value.name.removeprefix("wrapped.")
    own = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
    taken = {*inputs, *outputs, *graph.initializers}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value not in own and value.name in taken:
                value.name = f"{value.name}.internal"
    for value, name in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name


@contextlib.contextmanager
def _open_recurrences() -> Iterator[None]:
    """Let the exporter's own LSTM and GRU take effect, which leave the sequence's length open.

    It registers them for the time of an export. But PyTorch looks an operator's implementation up
    only once, so these would be missing in every export but the first; and it compiles the loop
    over the sequence, and would take the one that was compiled for a fixed length.
    """
    operators = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
    torch.compiler.reset()
    try:
        for operator in operators:
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator in operators:
            operator._dispatch_cache.clear()


@contextlib.contextmanager
def _separate_zeros() -> Iterator[None]:
    """Let tensors of two axes or more that are all zero stay apart. Not for several threads.

    The exporter makes one initializer of small tensors that are equal. Copies of one weight, as of
    a layer that is called twice, have to become one; but where all weights of two layers are
    removed, one of the two could no longer be found in the file.
    """
    merge = DeduplicateInitializersPass.call

    def merge_constants(own: DeduplicateInitializersPass, model: ir.Model) -> ir.passes.PassResult:
        initializers = model.graph.initializers
        values = list(initializers.values())
        zeros = {value for value in values if _is_zero(value, own.size_limit)}
        for value in zeros:
            initializers.pop(value.name)
        result = merge(own, model)
        left = zeros | set(initializers.values())
        initializers.clear()
        for value in values:
            if value in left:
                initializers.add(value)
        return result

    DeduplicateInitializersPass.call = merge_constants
    try:
        yield
    finally:
        DeduplicateInitializersPass.call = merge


def _is_zero(initializer: ir.Value, most: int) -> bool:
    tensor = initializer.const_value
    small = tensor is not None and len(tensor.shape) > 1 and tensor.size <= most
    return small and not tensor.numpy().any()


def _explain(error: Exception, axes: Axes) -> ValueError:
    """Return an error with the innermost cause, which the exporter wraps in general advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = str(cause).strip().split("\n\n")[0]
    if "Guard failed" in reason:  # an exported program's module checks its own shapes
        labels = {label for by_axis in axes.values() for label in by_axis.values()}
        return is_fixed(reason, BATCH_AXIS if labels == {BATCH_AXIS} else None)
    return ValueError(
        "The model must be exportable to ONNX. PyTorch's exporter failed with "
        f"{type(cause).__name__}: {reason}\n{_way_out(type(cause).__name__)}"
    )


def _way_out(kind: str) -> str:
    """Return advice for an error of the exporter, by its type."""
    if kind.startswith("GuardOnDataDependent"):
        return (
            "Rewrite that part of the model's forward without Python control flow that depends on "
            "values: use torch.where instead of if."
        )
    if kind == "DispatchError":
        return "Replace the operator in the model's forward, or try another export.opset."
    return (
        "Run torch.onnx.export(model, (inputs,), dynamo=True) on the model by itself to see the "
        "whole error, and change the code that it names."
    )


def _check_opset(model: ir.Model, opset: int) -> None:
    """Refuse an opset other than the requested one: the exporter falls back silently."""
    given = model.opset_imports[""]
    if given != opset:
        raise ValueError(
            f"export.opset must be one that PyTorch's exporter can write. Got {opset}, and the "
            f"exporter wrote {given}. Set export.opset: {given}."
        )
