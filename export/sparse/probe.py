"""The shapes of a model's values, found by running it, and their types, found by loading it."""

import threading
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime

from mfac_compress.export.session import load
from mfac_compress.export.sparse.files import temporary_file
from mfac_compress.export.sparse.graph import values_by_name

Feeds = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
FLOAT = "tensor(float)"
"""ONNX Runtime's name of the type of tensors of float32."""


def shapes_of(
    model: ir.Model, names: Iterable[str], feeds: Feeds, seconds: float | None = None
) -> dict[str, tuple[int, ...]]:
    """Run a model and record the shapes of internal values.

    Args:
        model: Read from a file, with its tensors.
        names: Values of the main graph.
        feeds: The model's inputs.
        seconds: Time limit of the run; None for no limit.
    Returns:
        Shape of each value.
    Raises:
        ValueError: If ONNX Runtime cannot load the model or run it on the inputs in time.
    """
    wanted = sorted(set(names))
    if not wanted:
        return {}
    probe = _with_outputs(model, "Shape", wanted, ir.DataType.INT64)
    with temporary_file(probe) as path:
        session = load(str(path), unoptimised())
        try:
            shapes = _run(session, feeds, seconds)
        except Exception as error:
            given = {name: list(array.shape) for name, array in feeds.items()}
            raise ValueError(
                f"The model must run on inputs of shapes {given}. ONNX Runtime said: {error}. "
                "Give other shapes."
            ) from error
    return {name: tuple(shape.tolist()) for name, shape in zip(wanted, shapes, strict=True)}


def types_of(model: ir.Model, names: Iterable[str]) -> dict[str, str]:
    """Return the types of internal values, as ONNX Runtime infers and names them.

    Args:
        model: As for :func:`shapes_of`.
        names: Values of the main graph.
    Raises:
        ValueError: If ONNX Runtime cannot load the model.
    """
    wanted = sorted(set(names))
    with temporary_file(_with_outputs(model, "Identity", wanted)) as path:
        outputs = load(str(path), unoptimised()).get_outputs()
    return {name: output.type for name, output in zip(wanted, outputs, strict=True)}


def _with_outputs(
    model: ir.Model, kind: str, names: Iterable[str], dtype: ir.DataType | None = None
) -> ir.Model:
    """Return a model that returns what nodes of one kind compute from internal values."""
    probe = model.clone()
    graph = probe.graph
    values = values_by_name(graph)
    graph.outputs.clear()
    for name in names:
        output = ir.val(f"{kind} of {name}", dtype)
        graph.append(ir.node(kind, [values[name]], outputs=[output]))
        graph.outputs.append(output)
    return probe


def _run(
    session: onnxruntime.InferenceSession, feeds: Feeds, seconds: float | None
) -> list[np.ndarray]:
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # the exception has the error
    if seconds is None:
        return session.run(None, dict(feeds), options)
    # ONNX Runtime checks this flag before each node, also in loops.
    end = threading.Timer(seconds, setattr, (options, "terminate", True))
    end.daemon = True
    end.start()
    try:
        return session.run(None, dict(feeds), options)
    finally:
        end.cancel()


def unoptimised() -> onnxruntime.SessionOptions:
    """Return options of a session without optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
