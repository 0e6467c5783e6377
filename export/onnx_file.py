"""Write a PyTorch model as one plain ONNX file, atomically."""

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from mfac_compress.export.axes import Axes
from mfac_compress.export.capture import capture
from mfac_compress.export.passes import (
    clear_traces,
    make_zeros_positive,
    name_recurrent,
    name_transposed,
)
from mfac_compress.export.replace import replace_model
from mfac_compress.mfac.batch import Tree


def export_onnx(
    model: nn.Module,
    example: Tree,
    path: str | os.PathLike[str],
    *,
    opset: int = 18,
    dynamic_batch: bool = True,
    input_name: str = "input",
    output_name: str = "output",
    dynamic_axes: Axes | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Export a model in evaluation mode to ONNX.

    Each zero of a floating-point initializer is +0. Initializers have the names of the parameters;
    if a linear layer became a MatMul with the transposed weight, ``.T`` follows the name. Batch
    norms are folded into the convolutions before them, which scales weights and keeps zeros.
    Tensors go to ``path`` + ``.data`` only if one file would exceed 2 GB.

    Args:
        model: Takes and returns a tree of tensors ``[n, ...]``. Any module, also the module of an
            exported program. Neither its mode nor its weights change.
        example: Inputs with which the model is traced. Each of shape ``[n, ...]``.
        path: File to write, in a folder that exists. Replaced only by a file that passed the
            ONNX checker; on failure it is not changed.
        opset: Version of the ONNX operators.
        dynamic_batch: Make the first axis dynamic, under the name ``batch``. Otherwise it is n.
        input_name: Name of a lone input. Several have the keys of the dict or the names of
            forward's parameters.
        output_name: Name of a lone output, numbered for a tuple. Several have the keys of a dict.
        dynamic_axes: Names of further dynamic axes, by input and axis. Axes of the same name have
            the same length.
        metadata: Metadata to write into the file.
    Raises:
        ValueError: If the model cannot be exported with these options, or ``path`` + ``.data``
            belongs to something else. The message says what to do.
    """
    graph = build_graph(
        model,
        example,
        opset=opset,
        dynamic_batch=dynamic_batch,
        input_name=input_name,
        output_name=output_name,
        dynamic_axes=dynamic_axes,
    )
    write_graph(graph, path, metadata=metadata)


def build_graph(
    model: nn.Module,
    example: Tree,
    *,
    opset: int = 18,
    dynamic_batch: bool = True,
    input_name: str = "input",
    output_name: str = "output",
    dynamic_axes: Axes | None = None,
) -> ir.Model:
    """Do all of :func:`export_onnx` except writing the file.

    Args:
        model: As for :func:`export_onnx`, and so are the other arguments.
    Returns:
        The graph, for :func:`write_graph`. Its tensors may share memory with the model's
        parameters: write it before these change.
    Raises:
        ValueError: If the model cannot be exported with these options.
    """
    graph = capture(
        model,
        example,
        opset=opset,
        dynamic_batch=dynamic_batch,
        input_name=input_name,
        output_name=output_name,
        dynamic_axes=dynamic_axes,
    )
    clear_traces(graph)
    parameters = dict(model.named_parameters())
    name_transposed(graph, parameters)
    name_recurrent(graph, parameters)
    make_zeros_positive(graph)
    return graph


def write_graph(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a graph of :func:`build_graph` to a file, atomically.

    Args:
        model: The graph. The metadata is added to it.
        path: As for :func:`export_onnx`.
        metadata: Metadata to write into the file.
    Raises:
        ValueError: If the ONNX checker refuses it, or ``path`` + ``.data`` belongs to something
            else.
    """
    path = Path(path)
    model.metadata_props.update(metadata or {})
    try:
        replace_model(model, path, onnx.checker.check_model)
    except onnx.checker.ValidationError as error:
        raise ValueError(
            f"The exported graph must pass the ONNX checker. It said: {error}. "
            "Try another export.opset."
        ) from error
