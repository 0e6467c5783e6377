"""Stage 6: measure, in ONNX Runtime, the files that ship."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.stages.export import DENSE, SPARSE
from mfac_compress.pipeline.verdict.statistics import Interval, bootstrap_interval, paired_interval
from mfac_compress.pipeline.weights import load_masks, load_weights

VERSION = 1
_REPORT_CONFIDENCE = 0.95


def depends_on(context: RunContext) -> dict[str, Any]:
    """What the measurements depend on, beside the files. Not the gates, nor the machine."""
    return {
        "metric": context.task.metric_fingerprint,
        "samples": context.data.validation.fingerprint,
        "batch_size": context.recipe.validate_.batch_size,
        "confidence": context.recipe.validate_.gates.confidence,
        "seed": context.recipe.run.seed,
    }


def validate(context: RunContext, recovered: Path, exported: Path, _folder: Path) -> dict[str, Any]:
    """Measure metric, parity, sizes and zeros; returns the report's parts of these names."""
    masks = load_masks(recovered)
    audit = audit_zeros(exported / SPARSE, masks)
    return {
        "metric": _metric(context, exported),
        "parity_error": _parity(context, recovered, exported),
        "size_bytes": {
            name: asdict(file_size(exported / file))
            for name, file in (("dense", DENSE), ("sparse", SPARSE))
        },
        "audit": [{**asdict(tensor), "intact": tensor.intact} for tensor in audit],
    }


def measure_latency(context: RunContext, exported: Path) -> list[LatencyComparison]:
    """Time the dense against the sparse file. Never cached: it is the machine's, not the file's."""
    section = context.recipe.validate_.latency
    if section is None:
        return []
    rows = torch.arange(min(max(section.batch_sizes), len(context.data.validation)))
    inputs, _ = next(iter(context.data.validation.batches(len(rows), indices=rows)))
    return compare_latency(
        exported / DENSE,
        exported / SPARSE,
        inputs.numpy(),
        batch_sizes=section.batch_sizes,
        threads=section.threads,
        warmup=section.warmup,
        runs=section.runs,
        seed=context.recipe.run.seed,
    )


def _metric(context: RunContext, exported: Path) -> dict[str, Any]:
    """The metric of both files on the same samples, and the interval of its drop."""
    section = context.recipe.validate_
    sessions = [open_session(exported / name, threads=_threads()) for name in (DENSE, SPARSE)]
    dense, sparse, targets = _outputs(context, sessions, section.batch_size)
    before, after = (context.task.evaluate(outputs, targets) for outputs in (dense, sparse))
    sign = 1 if context.task.direction == "maximize" else -1
    asked = section.gates.confidence
    confidence = _REPORT_CONFIDENCE if asked == "none" else asked
    drop = sign * float(np.mean(before) - np.mean(after))

    def drop_on(rows: np.ndarray) -> float:
        values = [context.task.evaluate(part[rows], targets[rows]) for part in (dense, sparse)]
        return sign * float(values[0] - values[1])

    interval: Interval = (
        paired_interval(sign * (before - after), confidence)
        if isinstance(before, np.ndarray)
        else bootstrap_interval(drop_on, len(targets), confidence, context.recipe.run.seed)
    )
    return {
        "name": context.task.metric_name,
        "direction": context.task.direction,
        "dense": float(np.mean(before)),
        "sparse": float(np.mean(after)),
        "drop": drop,
        "interval": list(interval),
        "confidence": confidence,
        "samples": len(targets),
    }


def _outputs(
    context: RunContext, sessions: list[InferenceSession], batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of both files and the targets, over the whole validation split."""
    split = context.data.validation

    def run() -> Iterator[tuple[np.ndarray, ...]]:
        for x, y in split.batches(batch_size):
            yield (*(predict(session, x.numpy(), batch_size) for session in sessions), y.numpy())

    total = -(-len(split) // batch_size)
    parts = list(context.progress.track(run(), "validate", total))
    dense, sparse, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return dense, sparse, targets


def _parity(context: RunContext, recovered: Path, exported: Path) -> float:
    """Largest difference from PyTorch, at batch 1 and at the configured batch."""
    module = load_weights(context.fresh_module(), recovered).cpu()
    split = context.data.validation
    sizes = {1, min(context.recipe.validate_.batch_size, len(split))}
    inputs = [next(iter(split.batches(n, indices=torch.arange(n))))[0] for n in sorted(sizes)]
    return max(parity_error(module, exported / SPARSE, x) for x in inputs)


def _threads() -> int:
    return torch.get_num_threads()
