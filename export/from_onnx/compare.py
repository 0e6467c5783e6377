"""Whether a converted graph computes what its file does, and where it does not."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from mfac_compress.export.from_onnx.convert import Converted
from mfac_compress.export.from_onnx.source import Source
from mfac_compress.export.names import feeds
from mfac_compress.export.session import load, predict
from mfac_compress.mfac.batch import Tree, arguments, call, map_tensors, size

_LARGEST_DIFFERENCE = 1e-3
"""Share of an output's norm. Rounding is a hundred times smaller, a wrong operator larger."""
_ROUNDING = 1e-5
_NOTHING = 4


def check_outputs(converted: Converted, source: Source, inputs: Tree) -> None:
    """Compare a module with its file in ONNX Runtime.

    Args:
        converted: The module, on any device.
        source: The file.
        inputs: Real samples. Each of shape ``[n, ...]``.
    Raises:
        ValueError: If outputs differ, with the first node whose do; if either cannot run.
    """
    module = converted.module
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        source.write(path, {})
        session = _open(path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        found = predict(session, inputs, size(inputs), names=module.outputs)
        found = found if isinstance(found, dict) else {module.outputs[0]: found}
        with torch.no_grad():
            computed = call(module, map_tensors(lambda x: x.to(module.device), inputs))
        computed = computed if isinstance(computed, dict) else {module.outputs[0]: computed}
        computed = {name: tensor.cpu() for name, tensor in computed.items()}
        wrong = [name for name in found if not _is_close(computed[name], found[name])]
        if not wrong:
            return
        rows = map_tensors(lambda x: x[: converted.batch], inputs) if converted.batch else inputs
        node = _first_wrong(converted, path, rows)
    differs = f"Output {wrong[0]!r} differs{_by(computed[wrong[0]], found[wrong[0]])}"
    if node is None and converted.batch:
        raise ValueError(
            f"{differs} for {size(inputs)} samples at once, though not for {converted.batch}: the "
            "file was exported for that many, and its operators cannot take more. Export it with "
            "an open batch axis."
        )
    raise ValueError(f"{differs}. The first operator that does is {node or 'not found'}.")


def _first_wrong(converted: Converted, path: Path, inputs: Tree) -> str | None:
    """Name the first node whose output differs; None if none does."""
    module = converted.module
    with torch.no_grad():
        args, kwargs = arguments(map_tensors(lambda x: x.to(module.device), inputs))
        found = module.intermediate(*args, **kwargs)
        computed = {name: tensor.cpu() for name, tensor in found.items()}
    model = onnx.load(path, load_external_data=False)
    known = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    names = [name for name in computed if name in made]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    beside = path.with_name("all.onnx")
    beside.write_bytes(model.SerializeToString())
    session = _open(beside, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    arrays = feeds(inputs, [one.name for one in session.get_inputs()])
    for name, array in zip(names, session.run(names, dict(arrays)), strict=True):
        if not _is_close(computed[name], array):
            return module.label(name)
    return None


def _open(path: Path, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    """Open a file of unknown origin: what is wrong with it is raised, and not printed as well."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _NOTHING
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    return load(str(path), options)


def _is_close(computed: Tensor, found: np.ndarray) -> bool:
    if tuple(computed.shape) != found.shape:
        return False
    ours, theirs = computed.double().numpy(), found.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return False
    ours, theirs = ours[finite], theirs[finite]
    difference, scale = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    return bool(difference <= _LARGEST_DIFFERENCE * scale + _ROUNDING * np.sqrt(ours.size))


def _by(computed: Tensor, found: np.ndarray) -> str:
    if tuple(computed.shape) != found.shape:
        return f" in its shape, {list(computed.shape)} for {list(found.shape)}"
    difference = np.abs(computed.double().numpy() - found.astype(np.float64)).max(initial=0)
    return f" by {difference:.2g}, where the largest is {np.abs(found).max(initial=0):.2g},"
