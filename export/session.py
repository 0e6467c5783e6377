"""Open ONNX files in ONNX Runtime and run them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from mfac_compress.export.names import Feeds, feeds
from mfac_compress.mfac.batch import Tree, map_tensors, named_tensors, size

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
    session: onnxruntime.InferenceSession,
    inputs: Tree,
    batch_size: int,
    form: Any = None,
    names: Sequence[str] | None = None,
) -> Any:
    """Run inputs through a session, batch by batch.

    Args:
        session: Takes and returns tensors whose first axis is the batch.
        inputs: A tree of tensors or arrays ``[n, ...]``, as for :func:`~names.feeds`.
        batch_size: Rows per call. A file exported for one batch size is run with that size; its
            last batch is padded with copies, whose outputs are dropped.
        form: Outputs of the model from which the file was made. None if they are one tensor, or
            for a dict by the file's names.
        names: Of the file's outputs that count. None for all.
    Returns:
        Arrays ``[n, ...]`` in the form of the model's outputs, in the order of the inputs.
    Raises:
        ValueError: If there are no rows, or the file does not take the inputs' names, shapes or
            dtypes, or returns something else than the model.
    """
    arrays = feeds(inputs, [one.name for one in session.get_inputs()])
    rows = size(arrays)
    if rows == 0:
        raise ValueError("inputs must have at least one row. Got none.")
    fixed = fixed_batch(session)
    at_once = fixed or batch_size
    parts = []
    for start in range(0, rows, at_once):
        batch = {name: array[start : start + at_once] for name, array in arrays.items()}
        count = size(batch)
        filled = {name: fill(array, fixed) for name, array in batch.items()}
        parts.append([output[:count] for output in call(session, filled, names)])
    outputs = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _in_form(outputs, names or [one.name for one in session.get_outputs()], form)


def _in_form(outputs: list[np.ndarray], names: Sequence[str], form: Any) -> Any:
    if form is None:
        return outputs[0] if len(outputs) == 1 else dict(zip(names, outputs, strict=True))
    expected = sum(1 for _ in named_tensors(form))
    if expected != len(outputs):
        raise ValueError(
            f"The ONNX file must return what the model returns: {expected} tensors. Got "
            f"{len(outputs)}. Export the model again."
        )
    remaining = iter(outputs)
    return map_tensors(lambda _: next(remaining), form)


def call(
    session: onnxruntime.InferenceSession, arrays: Feeds, names: Sequence[str] | None = None
) -> list[Any]:
    """Return outputs for some inputs. Raises ValueError if the file does not take them."""
    try:
        return session.run(names and [*names], dict(arrays))
    except InvalidArgument as error:
        taken = ", ".join(
            f"{one.name} {one.type} of shape {one.shape}" for one in session.get_inputs()
        )
        got = ", ".join(f"{name} {x.dtype} of shape {list(x.shape)}" for name, x in arrays.items())
        raise ValueError(
            f"Inputs must match those of the ONNX file: {taken}. Got {got}. "
            "Convert the inputs, or export with an example of that shape and dtype."
        ) from error


def fill(rows: np.ndarray, size: int | None) -> np.ndarray:
    """Repeat the last row until there are ``size`` rows, if a size is fixed."""
    if size is None or len(rows) == size:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
