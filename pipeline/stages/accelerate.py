"""The file with sparse operators, where the machine seems to run it faster.

What this stage chooses is a candidate, and it is cached. Whether it is faster is decided by the
latencies that the report prints, which every run measures anew: see :func:`decided`.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mfac_compress.export import (
    WHOLE_NOT_FASTER,
    FileSpeed,
    LatencyComparison,
    LayerSpeed,
    Workload,
    kernel_library,
    machine_load,
    measure_speed,
    why_not_faster,
    write_model,
)
from mfac_compress.export.latency import FeedsOf
from mfac_compress.pipeline.errors import InputError, StageError
from mfac_compress.pipeline.file_names import DENSE, LIBRARY, ONNX_FILES, WITH_KERNELS
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.run.stage import Job

_USED = "faster at every batch size, number of threads and length of validate.latency"
_KERNEL_SETTINGS = ("MFAC_SPARSE_ISA", "MFAC_SPARSE_L1D")
"""Environment variables that the kernels read; results may round otherwise by them."""


@dataclass(frozen=True)
class Flops:
    """Multiply-accumulates (MACs) in theory, of all convolutions and matrix products in one call.

    Counted, not measured.
    """

    workload: Workload
    """Whose call is counted."""
    dense: int
    """Those of the dense file."""
    sparse: int
    """Those by weights that are not zero."""
    ratio: float
    """Sparse / dense."""


@dataclass(frozen=True)
class Kernels:
    """How a file with sparse operators came about, or why there is none."""

    made_from: str
    """Name of the variant whose layers were looked at."""
    state: Literal["candidate", "used", "no gain", "too noisy", "not built", "off"]
    """``used`` where the file was written: each of its latencies shows it faster. ``too noisy``:
    the machine was too busy to tell, so it was not. ``candidate``: not compared yet, which no
    report says."""
    reason: str
    """Why the state is what it is, in words."""
    layers: tuple[LayerSpeed, ...]
    """The layers that sparse operators could compute, and what came of each."""
    flops: Flops
    """Multiply-accumulates of a call, with and without those by zeros."""
    compared: tuple[LatencyComparison, ...] = ()
    """Latency of the file against that of ``made_from``. It is used where this and its latency
    against the dense file show it faster. Empty: there was no candidate."""


def processor() -> str:
    """The processor, and which settings the kernels take from the environment."""
    settings = (f"{name}={os.environ[name]}" for name in _KERNEL_SETTINGS if os.environ.get(name))
    return " ".join((machine_load().cpu, *settings))


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
        if artifact in [ONNX_FILES[name] for name in WITH_KERNELS.values()]:
            try:
                kernel_library()
            except ValueError as error:
                raise InputError(f"{where('validate.artifact')}: {error}") from error


def check_written(recipe: Recipe, kernels: Kernels) -> None:
    """Check that the file is there, if the gates apply to it.

    Args:
        recipe: Names the file to which they do.
        kernels: Of the stage, or decided.
    Raises:
        StageError: If it is not to be written.
    """
    file = ONNX_FILES[WITH_KERNELS[kernels.made_from]]
    if recipe.artifact == file and kernels.state not in ("candidate", "used"):
        raise StageError(
            "accelerate",
            f"{recipe.where('validate.artifact')}: {file} is written only where it is faster. It "
            f"was not: {kernels.reason}. {_advice(kernels)}",
        )


def _advice(kernels: Kernels) -> str:
    if kernels.state == "too noisy":
        return "Run again when the machine is less busy: only latency is measured again."
    return f"Set validate.artifact to {ONNX_FILES[kernels.made_from]}, or raise prune.sparsity."


def decided(kernels: Kernels, comparisons: Sequence[LatencyComparison]) -> Kernels:
    """What came of the candidate, once it was compared with the dense file and with its source.

    It is used where each comparison shows it faster. So a file of the dense one's speed is used in
    at most 2.5% of all runs, and the report never shows another result than the one that decided.

    Args:
        kernels: Of the stage.
        comparisons: At each workload where it must be faster; empty where there is no candidate.
    """
    if kernels.state != "candidate":
        return kernels
    of_source = tuple(one for one in comparisons if one.reference == kernels.made_from)
    kernels = replace(kernels, compared=of_source)
    refuted = why_not_faster(comparisons)
    if refuted is None:
        return replace(kernels, state="used", reason=_USED)
    finding, reason = refuted
    return replace(
        kernels,
        state="too noisy" if finding == "too noisy to judge" else "no gain",
        reason=reason,
        layers=tuple(
            replace(layer, block=None, reason=WHOLE_NOT_FASTER) if layer.block else layer
            for layer in kernels.layers
        ),
    )


def accelerate(
    job: Job,
    *,
    source: str,
    sparse_kernels: Literal["auto", "off"],
    library: Path | None,
    workloads: Sequence[Workload],
    feeds: FeedsOf,
    cpu: str,
) -> Kernels:
    """Write the candidate and the library to the job's folder, where there is one.

    Args:
        job: Where, after the stage ``export`` and that which made the file.
        source: Name of the variant whose layers are looked at.
        sparse_kernels: The recipe's ``export.sparse_kernels``.
        library: Shared library of the kernels; None where they are not built.
        workloads: Where the file must be faster.
        feeds: Inputs of the file for a workload.
        cpu: By whose clock the choice is made.
    """
    del cpu  # measured on, not looked at
    off, exported = sparse_kernels == "off", job.before["export"]
    speed = measure_speed(
        job.before["source"].folder / ONNX_FILES[source],
        feeds,
        workloads,
        kernels=library is not None and not off,
        progress=job.progress.step,
    )
    state, reason = _state(speed, library, off)
    if speed.model is not None:
        write_model(speed.model, job.folder / ONNX_FILES[WITH_KERNELS[source]])
        (job.folder / LIBRARY).parent.mkdir()
        shutil.copyfile(library, job.folder / LIBRARY)
    whole = speed.layers
    if exported.facts.kept:  # what was cut out of the file is counted in the dense one
        dense = exported.folder / ONNX_FILES[DENSE]
        whole = measure_speed(dense, feeds, workloads, kernels=False).layers
    flops = flops_of(speed.layers, workloads[0], whole)
    return Kernels(source, state, reason, speed.layers, flops)


def _state(speed: FileSpeed, library: Path | None, off: bool) -> tuple[str, str]:
    if off:
        return "off", "export.sparse_kernels is off"
    if library is None:
        return "not built", "the sparse kernels were not built: no C++ compiler was there"
    if speed.model is None:
        return "no gain", speed.reason
    return "candidate", "not compared yet"


def flops_of(
    layers: Sequence[LayerSpeed], workload: Workload, whole: Sequence[LayerSpeed] | None = None
) -> Flops:
    """Sum up layers, and those of the dense file if it has others. Without any, none is saved."""
    dense = sum(layer.macs or 0 for layer in whole or layers)
    sparse = sum(layer.kept_macs or 0 for layer in layers)
    return Flops(workload, dense, sparse, sparse / dense if dense else 1.0)
