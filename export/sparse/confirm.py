"""Judge a model with sparse operators by the comparison that a report prints.

The times by which it was chosen are not used: the fastest of many candidates may be so by chance.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from mfac_compress.export.latency import Workload, compare_latency, why_not_faster
from mfac_compress.export.sparse.files import temporary_file
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.sparse.speed import FileSpeed

WHOLE_NOT_FASTER = "the model as a whole was not shown to be faster with sparse operators"
"""Reason why a layer is left to ONNX Runtime if the whole model was not found faster."""
_LONGEST_MS = 10_000.0  # for each workload, without opening and warm-up


def confirm(
    found: FileSpeed,
    path: str | os.PathLike[str],
    feeds_of: Callable[[int], Feeds],
    workloads: Sequence[Workload],
    *,
    warmup: int,
    runs: int,
) -> FileSpeed:
    """Compare the candidate model with the file, and drop it unless it is shown to be faster.

    Args:
        found: The result of :func:`measure_speed` for the file.
        path: The file.
        feeds_of: Batch size -> the model's inputs.
        workloads: Batch sizes and threads for which it must be faster.
        warmup: As :func:`compare_latency` takes it.
        runs: Timed pairs; fewer, down to six, if they take many seconds.
    """
    if found.model is None:
        return found
    with temporary_file(found.model) as sparse:
        compared = compare_latency(
            path,
            sparse,
            feeds_of,
            workloads,
            warmup=warmup,
            runs=runs,
            library=kernel_library(),
            longest_ms=_LONGEST_MS,
        )
    refuted = why_not_faster(compared)
    if refuted is None:
        return replace(found, compared=tuple(compared))
    layers = tuple(
        replace(layer, block=None, reason=WHOLE_NOT_FASTER) if layer.block else layer
        for layer in found.layers
    )
    return replace(found, layers=layers, model=None, reason=refuted[1], compared=tuple(compared))
