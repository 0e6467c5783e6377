"""The dense and the sparse model as ONNX files."""

from collections.abc import Mapping
from typing import Any

from mfac_compress.pipeline.file_names import DENSE, ONNX_FILES, SPARSE
from mfac_compress.pipeline.inputs.model import Model, OnnxForm
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State


def export(
    job: Job, *, model: Model, form: OnnxForm, metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Write ``dense.onnx`` and ``model.onnx`` to the job's folder.

    Args:
        job: Where, after the last state.
        model: The dense model.
        form: How they are written.
        metadata: Written into both files.

    Raises:
        InputError: If the model cannot be exported as the recipe says.
    """
    state = State.load(job.before["state"].folder)
    sparsity = {"mfac_compress.sparsity": f"{state.sparsity:.6f}"}
    files = [
        (DENSE, None, metadata),
        (SPARSE, state.tensors, {**metadata, **sparsity}),
    ]
    for name, tensors, properties in job.progress.track(files, "export", total=len(files)):
        model.write(tensors, job.folder / ONNX_FILES[name], form, properties)
    return {}
