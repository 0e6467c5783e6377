"""The difference between ONNX Runtime's outputs and PyTorch's."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mfac_compress.export.device import device_of
from mfac_compress.export.session import open_session, predict
from mfac_compress.mfac.batch import Tree, call, evaluating, map_tensors, named_tensors, size


def parity_error(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Tree,
    *,
    library: Path | None = None,
    names: Sequence[str] | None = None,
) -> float:
    """Compare a model with its ONNX file on one batch.

    Args:
        model: Returns a tree of tensors. It is run in evaluation mode, and its modes are restored.
        path: The model's ONNX file.
        inputs: Each of shape ``[n, ...]``.
        library: Shared library of custom operators that the file needs.
        names: Of the file's outputs that the model returns. None for all.
    Returns:
        Largest absolute difference of all outputs, in float64. Infinity if any output of either
        is NaN or infinite: such outputs cannot be compared, so they count as a failure.
    Raises:
        ValueError: If the outputs differ in form or shape, or the file cannot be loaded or run.
    """
    session = open_session(path, library=library)
    expected = model_outputs(model, inputs)
    return largest_difference(expected, predict(session, inputs, size(inputs), expected, names))


def model_outputs(model: nn.Module, inputs: Tree) -> Any:
    """Outputs of a model in evaluation mode: a tree of arrays in float64.

    Args:
        model: As for :func:`parity_error`.
        inputs: Each of shape ``[n, ...]``.
    """
    with evaluating(model), torch.no_grad():
        outputs = call(model, map_tensors(lambda x: x.to(device_of(model, x)), inputs))
    return map_tensors(lambda output: output.double().cpu().numpy(), outputs)


def largest_difference(expected: Any, outputs: Any) -> float:
    """Compare what a model returned with what its ONNX file returned, as :func:`parity_error` does.

    Args:
        expected: Of the model, by :func:`model_outputs`.
        outputs: Of the file, as :func:`predict` returns them in the form of the model's.
    """
    errors = map_tensors(_difference, expected, outputs)
    return max(error for _, error in named_tensors(errors))


def _difference(expected: np.ndarray, output: np.ndarray) -> float:
    if output.shape != expected.shape:
        raise ValueError(
            f"The ONNX file must return what the model returns: shape {list(expected.shape)}. "
            f"Got {list(output.shape)}. Export the model again."
        )
    with np.errstate(invalid="ignore"):  # infinity - infinity
        error = float(np.abs(output.astype(np.float64) - expected).max())
    return error if math.isfinite(error) else math.inf
