"""The difference between ONNX Runtime's outputs and PyTorch's."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mfac_compress.export.evaluation import device_of, evaluating
from mfac_compress.export.session import open_session, predict


def parity_error(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Tensor,
    *,
    library: Path | None = None,
) -> float:
    """Compare a model with its ONNX file on one batch.

    Args:
        model: Returns one tensor. It is run in evaluation mode, and its modes are restored.
        path: The model's ONNX file.
        inputs: Shape ``[n, ...]``.
        library: Shared library of custom operators that the file needs.
    Returns:
        Largest absolute difference, in float64. Infinity if any output of either is NaN or
        infinite: such outputs cannot be compared, so they count as a failure.
    Raises:
        ValueError: If the outputs differ in shape, or the file cannot be loaded or run.
    """
    session = open_session(path, library=library)
    outputs = predict(session, inputs.cpu().numpy(), len(inputs))
    return largest_difference(model, inputs, outputs)


def largest_difference(model: nn.Module, inputs: Tensor, outputs: np.ndarray) -> float:
    """Compare a model with what its ONNX file returned for one batch.

    Args:
        model: As for :func:`parity_error`. So is what is returned and raised.
        inputs: Shape ``[n, ...]``.
        outputs: Of the file. Shape ``[n, ...]``.
    """
    with evaluating(model), torch.no_grad():
        expected = model(inputs.to(device_of(model, inputs))).double().cpu().numpy()
    if outputs.shape != expected.shape:
        raise ValueError(
            f"The ONNX file must return what the model returns: shape {list(expected.shape)}. "
            f"Got {list(outputs.shape)}. Export the model again."
        )
    with np.errstate(invalid="ignore"):  # infinity - infinity
        error = float(np.abs(outputs.astype(np.float64) - expected).max())
    return error if math.isfinite(error) else math.inf
