"""Judge a model with sparse operators by the comparison that a report prints.

The times by which it was chosen do not count: the fastest of many candidates is also the luckiest.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from mfac_compress.export.latency import Setting, compare_latency, why_not_faster
from mfac_compress.export.sparse.files import written
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.sparse.speed import FileSpeed

NOT_IN_WHOLE = "the model as a whole was not shown to be faster with sparse operators"
"""Why a layer is left to ONNX Runtime where the whole was measured and not found faster."""
_LONGEST_MS = 10_000.0  # at each setting, beside opening and warm-up


def confirm(
    found: FileSpeed,
    path: str | os.PathLike[str],
    feeds_of: Callable[[int], Feeds],
    settings: Sequence[Setting],
    *,
    warmup: int,
    runs: int,
) -> FileSpeed:
    """Compare the model that was found with the file, and drop it unless that shows it faster.

    Args:
        found: What :func:`measure_speed` found in the file.
        path: The file.
        feeds_of: Batch size -> the model's inputs.
        settings: Where it must be faster.
        warmup: As :func:`compare_latency` takes it.
        runs: Timed pairs; fewer, down to six, where they take many seconds.
    """
    if found.model is None:
        return found
    with written(found.model) as sparse:
        compared = compare_latency(
            path,
            sparse,
            feeds_of,
            settings,
            warmup=warmup,
            runs=runs,
            library=kernel_library(),
            longest_ms=_LONGEST_MS,
        )
    refuted = why_not_faster(compared)
    if refuted is None:
        return replace(found, compared=tuple(compared))
    layers = tuple(
        replace(layer, block=None, reason=NOT_IN_WHOLE) if layer.block else layer
        for layer in found.layers
    )
    return replace(found, layers=layers, model=None, reason=refuted[1], compared=tuple(compared))
