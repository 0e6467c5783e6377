"""Trace a PyTorch model into an ONNX graph in memory, with errors that say what to do."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfac_compress.export.evaluation import device_of, evaluating

BATCH_AXIS = "batch"


def capture(
    model: nn.Module,
    example: Tensor,
    *,
    opset: int,
    dynamic_batch: bool,
    input_name: str,
    output_name: str,
) -> ir.Model:
    """Trace a model of one input and one output tensor into an ONNX graph.

    Args:
        model: Any module, also the module of an exported program. Not changed.
        example: Input with which the model is traced. Shape ``[n, ...]``.
        opset: Version of the ONNX operators.
        dynamic_batch: Make the first axis dynamic, under the name ``batch``. Otherwise it is n.
        input_name: Name of the graph's input.
        output_name: Name of the graph's output.
    Returns:
        The graph. Its tensors may share memory with the model's parameters.
    Raises:
        ValueError: If a name is taken, the model cannot be run, traced or translated, it returns
            anything other than one tensor ``[n, ...]``, or it fixes the batch size although
            ``dynamic_batch`` is set.
    """
    _check_names(model, input_name, output_name)
    # Cloned for its strides: an axis of size one may have any stride, and with some of them the
    # tracer takes images of one channel for channels-last and adds index arithmetic to the graph.
    example = example.to(device_of(model, example)).clone(memory_format=torch.contiguous_format)
    with evaluating(model):
        _check_forward(model, example)
        if dynamic_batch and len(example) == 1:
            # The tracer treats an axis of size one as a constant.
            example = torch.cat([example, example])
        axes = ({0: torch.export.Dim(BATCH_AXIS)},) if dynamic_batch else None
        try:
            # The exporter can translate the plain form of attention. The kernels that PyTorch would
            # choose on this machine, and for gradients, order axes differently in memory, and the
            # exporter fails on views of them.
            with _silence(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                program = torch.onnx.export(
                    model,
                    (example,),
                    dynamo=True,
                    opset_version=opset,
                    input_names=[input_name],
                    output_names=[output_name],
                    dynamic_shapes=axes,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise _explain(error) from error
    _check_opset(program.model, opset)
    if dynamic_batch:
        _check_batch_is_open(program.model)
    return program.model


def _check_names(model: nn.Module, input_name: str, output_name: str) -> None:
    """Refuse names in use: an input with the name of a weight would replace it."""
    taken = {"", *(name for name, _ in (*model.named_parameters(), *model.named_buffers()))}
    for key, name in (("export.input_name", input_name), ("export.output_name", output_name)):
        if name in taken:
            raise ValueError(
                f"{key} must be a name that no parameter of the model and no other input or output "
                f"of the graph has. Got {name!r}. Choose another."
            )
        taken.add(name)


def _check_forward(model: nn.Module, example: Tensor) -> None:
    """Run the model once: the tracer's own errors are hard to read, Python's are not."""
    shape = list(example.shape)
    try:
        with torch.no_grad():
            output = model(example)
    except Exception as error:
        raise ValueError(
            f"The model must run on its example input of shape {shape}. It raised "
            f"{type(error).__name__}: {error}. Check that the data has the shape and dtype that "
            "the model expects."
        ) from error
    if not isinstance(output, Tensor):
        raise ValueError(
            f"The model must return one tensor. Got {type(output).__name__}. "
            "Wrap it in a module whose forward returns the tensor to be exported."
        )
    if output.shape[:1] != example.shape[:1]:
        raise ValueError(
            f"The model must return one row per sample. Got an output of shape "
            f"{list(output.shape)} for an input of shape {shape}. "
            "Wrap it in a module whose forward keeps the batch as the first axis."
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporter's prints, warnings and log records.

    Whatever matters in them is also raised as an exception. This affects the whole process.
    """
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _explain(error: Exception) -> ValueError:
    """Return an error with the innermost cause, which the exporter wraps in general advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = str(cause).strip().split("\n\n")[0]
    if "Guard failed" in reason:  # an exported program's module checks its own shapes
        return _batch_is_fixed(reason)
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


def _batch_is_fixed(reason: str) -> ValueError:
    return ValueError(
        f"dynamic batch not possible: the model specialises the batch size ({reason}). "
        "Set export.dynamic_batch: false, or remove the constant from the model's forward "
        "(to the exporter len(x) is a constant, x.shape[0] is not)."
    )


def _check_batch_is_open(model: ir.Model) -> None:
    """Refuse a batch axis that the exporter fixed: it does so silently."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        size = value.shape[0] if value.shape else None
        if isinstance(size, int):
            raise _batch_is_fixed(f"the batch axis of {value.name!r} came out as {size}")


def _check_opset(model: ir.Model, opset: int) -> None:
    """Refuse an opset other than the requested one: the exporter falls back silently."""
    given = model.opset_imports[""]
    if given != opset:
        raise ValueError(
            f"export.opset must be one that PyTorch's exporter can write. Got {opset}, and the "
            f"exporter wrote {given}. Set export.opset: {given}."
        )
