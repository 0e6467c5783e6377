"""The file with sparse operators, where the machine seems to run it faster.

What this stage chooses is a candidate, and it is cached. Whether it is faster is decided by the
latencies that the report prints, which every run measures anew: see :func:`decided`.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfac_compress.export import (
    WHOLE_NOT_FASTER,
    FileSpeed,
    LatencyComparison,
    LayerSpeed,
    Workload,
    kernel_library,
    measure_speed,
    why_not_faster,
    write_model,
)
from mfac_compress.pipeline.errors import InputError, StageError
from mfac_compress.pipeline.file_names import ACCELERATED, LIBRARY, SPARSE
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import LatencySection, Recipe
from mfac_compress.pipeline.run.stage import Job

CANDIDATE = "candidate"
"""State of a file that was chosen and is not compared yet."""
_USED = "faster at every batch size and number of threads of validate.latency"


@dataclass(frozen=True)
class Feeds:
    """Batch size -> the first validation samples, by the name of the file's input.

    Args:
        split: The samples.
        name: Of the input.
    """

    split: Split
    name: str

    def __call__(self, batch_size: int) -> Mapping[str, np.ndarray]:
        rows = torch.arange(batch_size) % len(self.split)
        inputs, _ = next(iter(self.split.batches(batch_size, indices=rows)))
        return {self.name: inputs.numpy()}


def built_library() -> Path | None:
    """The shared library of the sparse kernels; None where it was not built."""
    try:
        return kernel_library()
    except ValueError:
        return None


def check(ranks: Ranks, *, artifact: str, where: Callable[..., str], **_: Any) -> None:
    """Check, before any work, that the file to which the gates apply can be written.

    Raises:
        InputError: If it needs the kernels and they are not built.
    """
    with ranks.raise_on_every_rank():
        if artifact == ACCELERATED:
            try:
                kernel_library()
            except ValueError as error:
                raise InputError(f"{where('validate.artifact')}: {error}") from error


def check_written(recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Check that the file to which the gates apply is there.

    Args:
        recipe: Names it.
        facts: Of this stage, or decided.
    Raises:
        StageError: If it is not to be written.
    """
    if recipe.validate_.artifact == ACCELERATED and facts["state"] not in (CANDIDATE, "used"):
        raise StageError(
            "accelerate",
            f"{recipe.where('validate.artifact')}: {ACCELERATED} is written only where it is "
            f"faster. It was not: {facts['reason']}. {_advice(facts)}",
        )


def _advice(facts: Mapping[str, Any]) -> str:
    if facts["state"] == "too noisy":
        return "Run again when the machine is less busy: only latency is measured again."
    return f"Set validate.artifact to {SPARSE}, or raise prune.sparsity."


def decided(facts: Mapping[str, Any], comparisons: Sequence[LatencyComparison]) -> dict[str, Any]:
    """The facts, once the candidate was compared with the dense file.

    It is used where each comparison shows it faster. So a file of the dense one's speed is used in
    at most 2.5% of all runs, and the report never shows another result than the one that decided.

    Args:
        facts: Of this stage.
        comparisons: At each setting where it must be faster; empty where there is no candidate.
    """
    if facts["state"] != CANDIDATE:
        return dict(facts)
    refuted = why_not_faster(comparisons)
    if refuted is None:
        return {**facts, "state": "used", "reason": _USED}
    finding, reason = refuted
    return {
        **facts,
        "state": "too noisy" if finding == "too noisy to judge" else "no gain",
        "reason": reason,
        "library_bytes": None,
        "layers": [
            {**layer, "block": None, "reason": WHOLE_NOT_FASTER} if layer["block"] else layer
            for layer in facts["layers"]
        ],
    }


def accelerate(
    job: Job,
    *,
    sparse_kernels: str,
    library: Path | None,
    workloads: Sequence[Workload],
    feeds: Feeds,
    cpu: str,
) -> dict[str, Any]:
    """Write the candidate and the library to the job's folder, where there is one.

    Args:
        job: Where, after the stage ``export``.
        sparse_kernels: The recipe's ``export.sparse_kernels``.
        library: Shared library of the kernels; None where they are not built.
        workloads: Where the file must be faster.
        feeds: Inputs by batch size.
        cpu: By whose clock the choice is made.
    """
    del cpu  # measured on, not looked at
    off = sparse_kernels == "off"
    speed = measure_speed(
        job.before["exported"].folder / SPARSE,
        feeds,
        workloads,
        kernels=bool(library) and not off,
        progress=job.progress.step,
    )
    state, reason = _state(speed, library, off)
    if speed.model is not None:
        write_model(speed.model, job.folder / ACCELERATED)
        (job.folder / LIBRARY).parent.mkdir()
        shutil.copyfile(library, job.folder / LIBRARY)
    return {
        "state": state,
        "reason": reason,
        "batch_size": workloads[0].batch_size,
        "layers": [_layer(layer) for layer in speed.layers],
        "library_bytes": library.stat().st_size if speed.model is not None else None,
    }


def _state(speed: FileSpeed, library: Path | None, off: bool) -> tuple[str, str]:
    if off:
        return "off", "export.sparse_kernels is off"
    if library is None:
        return "not built", "the sparse kernels were not built: no C++ compiler was there"
    if speed.model is None:
        return "no gain", speed.reason
    return CANDIDATE, "not compared yet"


def workloads_of(recipe: Recipe) -> list[Workload]:
    """Where the file must be faster: what the recipe measures, or would by default."""
    section = recipe.validate_.latency or LatencySection()
    fixed = not recipe.export.dynamic_batch
    sizes = (recipe.validate_.batch_size,) if fixed else section.batch_sizes
    return [Workload(size, threads) for threads in section.threads for size in sizes]


def _layer(layer: LayerSpeed) -> dict[str, Any]:
    """A layer as plain JSON."""
    times = [{**asdict(time), **asdict(time.workload)} for time in layer.times]
    for time in times:
        del time["workload"]
    return {**asdict(layer), "shape": list(layer.shape), "times": times}
