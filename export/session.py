"""Open ONNX files in ONNX Runtime and run them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

_ERRORS_ONLY = 3


def open_session(
    path: str | os.PathLike[str], *, threads: int = 1, library: Path | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU, with all of ONNX Runtime's optimisations.

    Worker threads spin while a call runs, as by default, and stop when it returns: otherwise they
    would take cores from whatever runs next. With one thread the calling thread does the work.

    Args:
        path: ONNX file.
        threads: Threads inside an operator. Operators run one after the other.
        library: Shared library of custom operators that the file needs.
    Returns:
        A session that logs errors only.
    Raises:
        ValueError: If there is no such file, or ONNX Runtime cannot load it.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"There must be an ONNX file at {path}. Found none. Export it first.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(os.fspath(library))
    return load(path, options)


def load(
    path: str,
    options: onnxruntime.SessionOptions,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> onnxruntime.InferenceSession:
    """Open a file with the given options. Raises ValueError if ONNX Runtime cannot load it."""
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:
        raise ValueError(
            f"ONNX Runtime must be able to load {path}. The file may be truncated, miss an "
            "external data file, or need a newer ONNX Runtime. Export it again. ONNX Runtime "
            f"said: {error}"
        ) from error


def fixed_batch(session: onnxruntime.InferenceSession) -> int | None:
    """Return the batch size that a file was exported for, or None if it is dynamic."""
    size = session.get_inputs()[0].shape[0]
    return size if isinstance(size, int) else None


def predict(
    session: onnxruntime.InferenceSession, inputs: np.ndarray, batch_size: int
) -> np.ndarray:
    """Run inputs through a session, batch by batch.

    Args:
        session: Takes and returns one tensor.
        inputs: Shape ``[n, ...]``.
        batch_size: Rows per call. A file exported for one batch size is run with that size; its
            last batch is padded with copies, whose outputs are dropped.
    Returns:
        Outputs in the order of the inputs. Shape ``[n, ...]``.
    Raises:
        ValueError: If there are no rows, or the file does not take their shape or dtype.
    """
    if len(inputs) == 0:
        raise ValueError("inputs must have at least one row. Got none.")
    fixed = fixed_batch(session)
    size = fixed or batch_size
    outputs = []
    for start in range(0, len(inputs), size):
        rows = inputs[start : start + size]
        outputs.append(run(session, _fill(rows, fixed))[: len(rows)])
    return np.concatenate(outputs)


def run(session: onnxruntime.InferenceSession, batch: np.ndarray) -> np.ndarray:
    """Run one batch ``[n, ...]``. Raises ValueError if the file does not take it."""
    return call(session, {session.get_inputs()[0].name: batch})[0]


def call(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """Return all outputs for some inputs. Raises ValueError if the file does not take them."""
    try:
        return session.run(None, dict(feeds))
    except InvalidArgument as error:
        taken = ", ".join(
            f"{one.name} {one.type} of shape {one.shape}" for one in session.get_inputs()
        )
        got = ", ".join(f"{name} {x.dtype} of shape {list(x.shape)}" for name, x in feeds.items())
        raise ValueError(
            f"Inputs must match those of the ONNX file: {taken}. Got {got}. "
            "Convert the inputs, or export with an example of that shape and dtype."
        ) from error


def _fill(rows: np.ndarray, size: int | None) -> np.ndarray:
    """Repeat the last row until there are ``size`` rows, if a size is fixed."""
    if size is None or len(rows) == size:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
