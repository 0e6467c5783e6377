"""Judge a model with sparse operators by the comparison that a report prints.

The times by which it was chosen are not used: the fastest of many candidates may be so by chance.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mfac_compress.export.latency import FeedsOf, compare_latency, why_not_faster
from mfac_compress.export.sparse.files import temporary_file
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.speed import FileSpeed
from mfac_compress.export.variant import Variant
from mfac_compress.export.workload import Workload

WHOLE_NOT_FASTER = "the model as a whole was not shown to be faster with sparse operators"
"""Reason why a layer is left to ONNX Runtime if the whole model was not found faster."""
_LONGEST_MS = 10_000.0  # for each workload, without opening and warm-up


def confirm(
    found: FileSpeed,
    path: str | os.PathLike[str],
    feeds_of: FeedsOf,
    workloads: Sequence[Workload],
    *,
    warmup: int,
    runs: int,
) -> FileSpeed:
    """Compare the candidate model with the file, and drop it unless it is shown to be faster.

    Args:
        found: The result of :func:`measure_speed` for the file.
        path: The file.
        feeds_of: The model's inputs for a workload.
        workloads: Batch sizes, threads and lengths for which it must be faster.
        warmup: As :func:`compare_latency` takes it.
        runs: Timed pairs; fewer, down to six, if they take many seconds.
    """
    if found.model is None:
        return found
    with temporary_file(found.model) as sparse:
        file = Variant("stock ONNX Runtime", Path(path))
        candidate = Variant("sparse operators", sparse, library=kernel_library())
        (compared,) = compare_latency(
            file,
            [candidate],
            feeds_of,
            workloads,
            warmup=warmup,
            runs=runs,
            longest_ms=_LONGEST_MS,
        ).values()
    refuted = why_not_faster(compared)
    if refuted is None:
        return replace(found, compared=compared)
    layers = tuple(
        replace(layer, block=None, reason=WHOLE_NOT_FASTER) if layer.block else layer
        for layer in found.layers
    )
    return replace(found, layers=layers, model=None, reason=refuted[1], compared=compared)
