"""Stage 7: measure, in ONNX Runtime, the files that ship."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mfac_compress.export import (
    LatencyComparison,
    audit_zeros,
    compare_latency,
    file_size,
    largest_difference,
    open_session,
    parity_error,
    predict,
)
from mfac_compress.pipeline.file_names import ACCELERATED, DENSE, LIBRARY, SPARSE
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.recipe.schema import LatencySection
from mfac_compress.pipeline.stages.accelerate import feeds_of, settings_of
from mfac_compress.pipeline.stages.metric import compare_metric
from mfac_compress.pipeline.weights import load_masks, load_weights


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the measurements depend on, beside the files. Not the gates, nor the machine."""
    return {
        "metric": context.recipe.task.model_dump(exclude={"loss"}),
        "samples": context.data.validation.fingerprint,
        "batch_size": context.recipe.validate_.batch_size,
        "confidence": context.recipe.validate_.gates.confidence,
    }


def validate(
    context: RunContext, recovered: Path, exported: Path, accelerated: Path, _folder: Path
) -> dict[str, Any]:
    """Measure metric, parity, sizes and zeros; returns the report's parts of these names.

    What was measured on the file with sparse operators, where there is one, is in
    ``sparse_kernels``.
    """
    files = [_File(exported / DENSE), *_judged(exported, accelerated)]
    sizes = [asdict(file_size(file.path)) for file in files]
    module = load_weights(context.fresh_module(), recovered).cpu()
    (dense, *sparse), targets, parity = _outputs(context, module, files)
    metrics = [compare_metric(context, dense, outputs, targets) for outputs in sparse]
    measured = [
        {
            "metric": metric,
            "parity_error": error,
            "size_bytes": {"dense": sizes[0], "sparse": size},
        }
        for size, metric, error in zip(sizes[1:], metrics, parity, strict=True)
    ]
    audit = audit_zeros(exported / SPARSE, load_masks(recovered))
    return {
        **measured[0],
        "audit": [{**asdict(tensor), "intact": tensor.intact} for tensor in audit],
        "sparse_kernels": measured[1] if len(measured) > 1 else None,
    }


class Latencies(NamedTuple):
    """Of the two sparse files against the dense one, at each setting."""

    plain: tuple[LatencyComparison, ...] = ()
    accelerated: tuple[LatencyComparison, ...] = ()
    """Empty where there is no such file."""


def measure_latency(context: RunContext, exported: Path, accelerated: Path) -> Latencies:
    """Time the dense file against the plain sparse one, and the one with sparse operators.

    Never cached: it is the machine's, not the files'. The file with sparse operators is always
    compared, since that decides whether it is used; the plain one where the recipe asks for it.
    """
    section = context.recipe.validate_.latency
    timing = section or LatencySection()
    files = _judged(exported, accelerated)
    compared = [
        tuple(
            compare_latency(
                exported / DENSE,
                file.path,
                feeds_of(context),
                settings_of(context.recipe),
                warmup=timing.warmup,
                runs=timing.runs,
                library=file.library,
            )
        )
        for file in files[section is None :]
    ]
    return Latencies((), *compared) if section is None else Latencies(*compared)


class _File(NamedTuple):
    path: Path
    library: Path | None = None


def _judged(exported: Path, accelerated: Path) -> list[_File]:
    """The sparse files: the plain one, and where it was written that with sparse operators."""
    files = [_File(exported / SPARSE)]
    if (accelerated / ACCELERATED).is_file():
        files.append(_File(accelerated / ACCELERATED, accelerated / LIBRARY))
    return files


class _Outputs(NamedTuple):
    of_files: list[np.ndarray]
    """Each of shape ``[n, ...]``."""
    targets: np.ndarray
    parity: list[float]
    """Of each file but the first."""


def _outputs(context: RunContext, module: nn.Module, files: list[_File]) -> _Outputs:
    """What each file returns for the whole validation split, and how far that is from PyTorch.

    All samples are compared, since some may lie where rounding is coarse, and one sample by itself.

    Args:
        context: The run's.
        module: The sparse model.
        files: The dense file, then those of the sparse model.
    """
    split, batch_size = context.data.validation, context.recipe.validate_.batch_size
    sessions = [open_session(f.path, threads=_threads(), library=f.library) for f in files]
    first = next(split.batches(1, indices=[0]))[0]
    parity = [parity_error(module, f.path, first, library=f.library) for f in files[1:]]

    def run() -> Iterator[tuple[np.ndarray, ...]]:
        for x, y in split.batches(batch_size):
            outputs = [predict(session, x.numpy(), batch_size) for session in sessions]
            for at, sparse in enumerate(outputs[1:]):
                parity[at] = max(parity[at], largest_difference(module, x, sparse))
            yield (*outputs, y.numpy())

    total = -(-len(split) // batch_size)
    parts = list(context.progress.track(run(), "validate", total))
    *outputs, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Outputs(outputs, targets, parity)


def _threads() -> int:
    return torch.get_num_threads()
