"""Measure, in ONNX Runtime, the files that ship."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from mfac_compress.export import (
    LatencyComparison,
    Workload,
    audit_zeros,
    compare_latency,
    file_size,
    largest_difference,
    open_session,
    parity_error,
    predict,
)
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.file_names import ACCELERATED, DENSE, LIBRARY, SPARSE
from mfac_compress.pipeline.inputs.model_file import LoadedModel
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.inputs.task import Task
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import GatesSection, LatencySection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.accelerate import Feeds
from mfac_compress.pipeline.stages.metric import compare_metric

_MAX_REPEATED = 0.5
"""Share of the validation samples. Below it the intervals are at most 1.4 times too narrow, and the
report warns."""


def check(
    ranks: Ranks,
    *,
    samples: Split,
    repeats: int,
    gates: GatesSection,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check that intervals of the metric would not count the same few samples many times.

    Raises:
        InputError: If most validation samples repeat the input of another.
    """
    with ranks.raise_on_every_rank():
        judged = (gates.max_metric_drop, gates.min_metric, gates.max_metric) != (None, None, None)
        total = len(samples)
        if judged and gates.confidence != "none" and repeats > _MAX_REPEATED * total:
            raise InputError(
                f"{where('data.splits.validation')}: at least half of the inputs must "
                "be distinct, since intervals count samples as independent. Got "
                f"{total - repeats:,} distinct ones of {total:,}. Remove the repeats, or set "
                "validate.gates.confidence: none."
            )


def validate(
    job: Job,
    *,
    model: LoadedModel,
    samples: Split,
    task: Task,
    batch_size: int,
    confidence: float | Literal["none"],
) -> dict[str, Any]:
    """Measure metric, parity, sizes and zeros; returns the report's parts of these names.

    What was measured on the file with sparse operators, where there is one, is in
    ``sparse_kernels``.

    Args:
        job: After the last state and the files made of it.
        model: The dense model.
        samples: The validation samples.
        task: Has the metric.
        batch_size: Samples of one call.
        confidence: Of the intervals.
    """
    exported, accelerated = (job.before[name].folder for name in ("exported", "accelerated"))
    state = State.load(job.before["state"].folder)
    files = [_File(exported / DENSE), *_judged(exported, accelerated)]
    sizes = [asdict(file_size(file.path)) for file in files]
    module = state.into(model.copy()).cpu()
    (dense, *sparse), targets, parity = _outputs(module, files, samples, batch_size, job.progress)
    metrics = [compare_metric(task, confidence, dense, outputs, targets) for outputs in sparse]
    measured = [
        {
            "metric": metric,
            "parity_error": error,
            "size_bytes": {"dense": sizes[0], "sparse": size},
        }
        for size, metric, error in zip(sizes[1:], metrics, parity, strict=True)
    ]
    audit = audit_zeros(exported / SPARSE, state.masks)
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


def measure_latency(
    section: LatencySection | None,
    workloads: Sequence[Workload],
    feeds: Feeds,
    exported: Path,
    accelerated: Path,
) -> Latencies:
    """Time the dense file against the plain sparse one, and the one with sparse operators.

    Never cached: it is the machine's, not the files'. The file with sparse operators is always
    compared, since that decides whether it is used; the plain one where the recipe asks for it.

    Args:
        section: The recipe's ``validate.latency``.
        workloads: Batch sizes and threads.
        feeds: Inputs by batch size.
        exported: Folder of the stage ``export``.
        accelerated: Folder of the stage ``accelerate``.
    """
    timing = section or LatencySection()
    files = _judged(exported, accelerated)
    compared = [
        tuple(
            compare_latency(
                exported / DENSE,
                file.path,
                feeds,
                workloads,
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


def _outputs(
    module: nn.Module, files: list[_File], split: Split, batch_size: int, progress: Progress
) -> _Outputs:
    """What each file returns for the whole validation split, and how far that is from PyTorch.

    All samples are compared, since some may lie where rounding is coarse, and one sample by itself.

    Args:
        module: The sparse model.
        files: The dense file, then those of the sparse model.
        split: The samples.
        batch_size: Samples of one call.
        progress: Shows the batches.
    """
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
    parts = list(progress.track(run(), "validate", total))
    *outputs, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Outputs(outputs, targets, parity)


def _threads() -> int:
    return torch.get_num_threads()
