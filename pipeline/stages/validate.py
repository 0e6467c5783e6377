"""Stage 7: measure, in ONNX Runtime, the files that ship."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from onnxruntime import InferenceSession

from mfac_compress.export import (
    LatencyComparison,
    audit_zeros,
    compare_latency,
    file_size,
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
    metrics = _metrics(context, files)
    parity = _parity(context, recovered, files[1:])
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


def _metrics(context: RunContext, files: list[_File]) -> list[dict[str, Any]]:
    """The metric of each file but the first beside that one's, on the same samples."""
    sessions = [open_session(f.path, threads=_threads(), library=f.library) for f in files]
    *outputs, targets = _outputs(context, sessions, context.recipe.validate_.batch_size)
    return [compare_metric(context, outputs[0], sparse, targets) for sparse in outputs[1:]]


def _outputs(
    context: RunContext, sessions: list[InferenceSession], batch_size: int
) -> list[np.ndarray]:
    """Outputs of each file, and at last the targets, over the whole validation split."""
    split = context.data.validation

    def run() -> Iterator[tuple[np.ndarray, ...]]:
        for x, y in split.batches(batch_size):
            yield (*(predict(session, x.numpy(), batch_size) for session in sessions), y.numpy())

    total = -(-len(split) // batch_size)
    parts = list(context.progress.track(run(), "validate", total))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _parity(context: RunContext, recovered: Path, files: list[_File]) -> list[float]:
    """Each file's largest difference from PyTorch, at batch 1 and at the configured batch."""
    module = load_weights(context.fresh_module(), recovered).cpu()
    split = context.data.validation
    sizes = {1, min(context.recipe.validate_.batch_size, len(split))}
    inputs = [next(iter(split.batches(n, indices=torch.arange(n))))[0] for n in sorted(sizes)]
    return [
        max(parity_error(module, file.path, x, library=file.library) for x in inputs)
        for file in files
    ]


def _threads() -> int:
    return torch.get_num_threads()
