"""The dense and the sparse model as ONNX files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mfac_compress.export import Kept, shrink_file
from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.file_names import DENSE, ONNX_FILES, SPARSE
from mfac_compress.pipeline.inputs.model import Model, OnnxForm
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State


@dataclass(frozen=True)
class Exported:
    """What became of the tensors on their way into ``model.onnx``."""

    kept: Kept
    """By name, the places along each axis that are left of a tensor from which dead channels were
    cut out; null along an axis for all. Other tensors are whole."""


def export(
    job: Job,
    *,
    model: Model,
    form: OnnxForm,
    metadata: Mapping[str, str],
    remove_dead: bool,
    round_to: int,
) -> Exported:
    """Write ``dense.onnx`` and ``model.onnx`` to the job's folder.

    Args:
        job: Where, after the last state.
        model: The dense model.
        form: How they are written.
        metadata: Written into both files.
        remove_dead: Whether dead channels are cut out of ``model.onnx``.
        round_to: Layers keep so many of them that their number of outputs is a multiple.

    Raises:
        InputError: If the model cannot be exported as the recipe says.
        StageError: If cutting changed what the file computes.
    """
    state = State.load(job.before["state"].folder)
    sparsity = {"mfac_compress.sparsity": f"{state.sparsity:.6f}"}
    files = [
        (DENSE, None, metadata),
        (SPARSE, state.tensors, {**metadata, **sparsity}),
    ]
    for name, tensors, properties in job.progress.track(files, "export", total=len(files)):
        model.write(tensors, job.folder / ONNX_FILES[name], form, properties)
    path = job.folder / ONNX_FILES[SPARSE]
    return Exported(shrunk(path, form, remove_dead=remove_dead, round_to=round_to))


def shrunk(path: Path, form: OnnxForm, *, remove_dead: bool, round_to: int) -> Kept:
    """Take dead channels out of a file, where the recipe says so.

    Args:
        path: The file; replaced.
        form: How it was written.
        remove_dead: Whether they go.
        round_to: As for :func:`export`.

    Returns:
        What is left of each tensor that was cut.

    Raises:
        StageError: If cutting changed what the file computes.
    """
    if not remove_dead:
        return {}
    try:
        return shrink_file(path, form.example, round_to=round_to)
    except ValueError as error:
        raise StageError("export", str(error)) from error
