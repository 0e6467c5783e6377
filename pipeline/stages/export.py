"""The dense and the sparse model as ONNX files."""

from collections.abc import Mapping
from typing import Any

from mfac_compress.export import write_graph
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.file_names import DENSE, SPARSE
from mfac_compress.pipeline.inputs.model_file import LoadedModel
from mfac_compress.pipeline.inputs.onnx_exporter import OnnxExporter
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State


def export(
    job: Job, *, model: LoadedModel, exporter: OnnxExporter, metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Write ``dense.onnx`` and ``model.onnx`` to the job's folder.

    Args:
        job: Where, after the last state.
        model: The dense model.
        exporter: Makes the graphs.
        metadata: Written into both files.

    Raises:
        InputError: If the model cannot be exported as the recipe says.
    """
    state = State.load(job.before["state"].folder)
    sparsity = {"mfac_compress.sparsity": f"{state.sparsity:.6f}"}
    models = [
        (DENSE, metadata, lambda: exporter.dense),
        (
            SPARSE,
            {**metadata, **sparsity},
            lambda: exporter.graph(state.into(model.copy()).cpu()),
        ),
    ]
    for name, properties, graph in job.progress.track(models, "export", total=len(models)):
        try:
            write_graph(graph(), job.folder / name, metadata=properties)
        except ValueError as error:
            raise InputError(f"export: {error}") from error
    return {}
