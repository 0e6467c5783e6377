"""Measure, in ONNX Runtime, the files that ship."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

import torch
from torch import nn

from mfac_compress.export import (
    FileSize,
    LatencyComparison,
    TensorAudit,
    Variant,
    audit_zeros,
    compare_size,
    largest_difference,
    model_outputs,
    open_session,
    parity_error,
    predict,
    removed_zeros,
)
from mfac_compress.mfac.batch import Tree, map_tensors
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.file_names import IN_8_BITS, REFERENCES
from mfac_compress.pipeline.inputs.forward import random_state_kept, run_model
from mfac_compress.pipeline.inputs.metric_values import UndefinedMetricError
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.output import join_batches
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.inputs.task import Task
from mfac_compress.pipeline.inputs.task_metric import TaskMetric
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import GatesSection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.metric import Metric, MetricDrop, compare_metrics
from mfac_compress.pipeline.stages.variants import variants_of
from mfac_compress.pipeline.statistics.resampling import shuffle

_MAX_REPEATED = 0.5
"""Share of the validation samples. Below it the intervals are at most 1.4 times too narrow, and the
report warns."""

_NO_PARITY = {*REFERENCES, *IN_8_BITS}
"""Files that are not to compute exactly what the pruned model does in PyTorch."""
_TRIED = 256


@dataclass(frozen=True)
class Measured:
    """What is measured on one file."""

    file: str
    """Name in the run directory."""
    made_from: str | None
    """Name of the variant that was rewritten into this one."""
    metric: MetricDrop
    """The metric, and how much worse it is than that of the dense file."""
    size: FileSize
    """Size of the file."""
    sparsity: float | None
    """Share of the matched weights that the masks remove and that are zero in the file. null: a
    tensor was not found there; also for the dense file."""
    model_sparsity: float | None
    """The same zeros as a share of all parameters of the model."""
    parity_error: float | None
    """Largest absolute difference between PyTorch and ONNX Runtime, over all validation samples and
    for one sample alone. null: an output was NaN or infinite. Also for the dense file, with which
    PyTorch is not compared, and for files in 8 bits, which round."""
    audit: tuple[TensorAudit, ...]
    """Of each pruned tensor, in the model's order; of the dense file none."""
    latency: tuple[LatencyComparison, ...] = ()
    """Against the dense file, for each batch size, number of threads and length. Empty: not
    measured; as for the dense file itself."""
    latency_int8: tuple[LatencyComparison, ...] = ()
    """The same against ``dense-int8``, of the pruned model's files in 8 bits. Empty for others."""
    written: bool = True
    """Whether the file is in the run directory. Not where ``kernels`` says that it is no faster."""
    further_metrics: dict[str, MetricDrop] = field(default_factory=dict)
    """The same as ``metric`` of each of ``task.further_metrics``, by its name."""


@dataclass(frozen=True)
class Validation:
    """What is measured on all files. Latency is not among it, being the machine's of that hour."""

    metric: Metric
    further_metrics: dict[str, Metric]
    """By the names of ``task.further_metrics``."""
    variants: dict[str, Measured]
    """By the variant's name, the dense file first."""


def check(
    ranks: Ranks,
    *,
    model: Model,
    samples: Split,
    task: Task,
    batch_size: int,
    repeats: int,
    gates: GatesSection,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check what would make the measurements worthless, before there is anything to measure.

    Raises:
        InputError: If most validation samples repeat the input of another, so that intervals of the
            metrics would count the same few samples many times; or if a metric of the dense model
            on some samples is outside of its declared range.
    """
    with ranks.raise_on_every_rank():
        total = len(samples)
        if gates.judge_metrics and gates.confidence != "none" and repeats > _MAX_REPEATED * total:
            raise InputError(
                f"{where('data.splits.validation')}: at least half of the inputs must "
                "be distinct, since intervals count samples as independent. Got "
                f"{total - repeats:,} distinct ones of {total:,}. Remove the repeats, or set "
                "validate.gates.confidence: none."
            )
        declared = [each for each in task.metrics if each.is_own and each.range is not None]
        if ranks.is_rank_zero and declared:
            _check_ranges(model, samples, declared, batch_size)


def _check_ranges(
    model: Model, samples: Split, metrics: Sequence[TaskMetric], batch_size: int
) -> None:
    """Take the user's metrics of some samples, which refuses values outside of their ranges.

    One may have no value for so few, as a rank correlation: then nothing is known before validate.
    The targets are shuffled: a metric that keeps the best so far must not know the dense model's
    before it is asked for the sparse one's.
    """
    device = next(model.module.parameters()).device
    some = range(min(_TRIED, len(samples)))
    with random_state_kept(device):
        batches = list(samples.batches(batch_size, indices=some))
        outputs = [
            map_tensors(lambda tensor: tensor.cpu().numpy(), run_model(model.module, x, device))
            for x, _ in batches
        ]
        targets = join_batches(
            [map_tensors(lambda tensor: tensor.numpy(), y) for _, y in batches], "targets"
        )
        whole = join_batches(outputs, "outputs"), shuffle(targets)
        for metric in metrics:
            with suppress(UndefinedMetricError):
                metric.evaluate(*whole)


def validate(
    job: Job,
    *,
    model: Model,
    pruned: Sequence[str],
    samples: Split,
    task: Task,
    batch_size: int,
    confidence: float | Literal["none"],
) -> Validation:
    """Measure metrics, parity, sizes and zeros.

    Args:
        job: After the last state and the files made of it.
        model: The dense model.
        pruned: Names of the pruned tensors, in the model's order.
        samples: The validation samples.
        task: Has the metrics.
        batch_size: Samples of one call.
        confidence: Of the intervals.
    """
    state = State.load(job.before["state"].folder)
    files = variants_of(job.before)
    dense, *variants = files
    module = state.into(model.copy()).cpu()
    masks = {name: state.masks[name] for name in pruned}
    sizes, parameters = compare_size(dense, variants), sum(p.numel() for p in module.parameters())
    run = _run_files(files, module, model.outputs, samples, batch_size, job.progress)
    first, *others = compare_metrics(task.metrics, confidence, run.outputs, run.targets)
    metric, drops = first
    further = dict(zip(task.further_metrics, others, strict=True))
    kept = job.before["export"].facts.kept
    pruned_files = [each for each in variants if each.name not in REFERENCES]
    audits = dict.fromkeys(REFERENCES, ()) | audit_zeros(pruned_files, masks, kept, model.stored)
    return Validation(
        metric,
        {name: each for name, (each, _) in further.items()},
        {
            file.name: Measured(
                file=file.path.name,
                made_from=file.made_from,
                metric=drops[file.name],
                size=sizes[file.name],
                sparsity=_share(audits[file.name], sum(mask.numel() for mask in masks.values())),
                model_sparsity=_share(audits[file.name], parameters),
                parity_error=run.parity.get(file.name),
                audit=audits[file.name],
                further_metrics={name: each[file.name] for name, (_, each) in further.items()},
            )
            for file in files
        },
    )


def _share(audit: Sequence[TensorAudit], weights: int) -> float | None:
    """Removed weights that are zero in a file, as a share; None where they were not all found."""
    zeros = removed_zeros(audit)
    return None if zeros is None else zeros / weights


@dataclass(frozen=True)
class _Run:
    """What files return for the whole split, by their names.

    Attributes:
        outputs: Trees of arrays ``[n, ...]``.
        targets: Tree of arrays ``[n, ...]``.
        parity: Largest difference from PyTorch, of each file of the pruned model in float; None
            where an output was not finite.
    """

    outputs: dict[str, Tree]
    targets: Tree
    parity: dict[str, float | None]


def _run_files(
    files: Sequence[Variant],
    module: nn.Module,
    outputs: Sequence[str] | None,
    split: Split,
    batch_size: int,
    progress: Progress,
) -> _Run:
    """Run files on all samples, and the sparse model in PyTorch beside them.

    All samples are compared, since some may lie where rounding is coarse, and one sample by itself.
    Where the data pads, short samples go first: results are in the data's order all the same.

    Args:
        files: The dense file, then those of the sparse model.
        module: The sparse model.
        outputs: Names of the files' outputs that it returns; None for all.
        split: The samples.
        batch_size: Samples of one call.
        progress: Where batches are counted.
    """
    threads = torch.get_num_threads()
    sessions = [open_session(each.path, threads=threads, library=each.library) for each in files]
    first = next(split.batches(1, indices=[0]))[0]
    in_float = {at: each for at, each in enumerate(files) if each.name not in _NO_PARITY}
    parity = {
        at: parity_error(module, each.path, first, library=each.library, names=outputs)
        for at, each in in_float.items()
    }

    order = split.by_length(torch.arange(len(split)))
    place = order.argsort().numpy()

    def run() -> Iterator[tuple[Tree, ...]]:
        for x, y in split.batches(batch_size, indices=order):
            expected = model_outputs(module, x)
            found = [predict(each, x, batch_size, expected, outputs) for each in sessions]
            for at, error in parity.items():
                parity[at] = max(error, largest_difference(expected, found[at]))
            yield (*found, map_tensors(lambda tensor: tensor.numpy(), y))

    total = -(-len(split) // batch_size)
    parts = list(progress.track(run(), "validate", total))
    *found, targets = zip(*parts, strict=True)
    names = [each.name for each in files]

    def joined(parts: Sequence[Tree], what: str) -> Tree:
        return map_tensors(lambda array: array[place], join_batches(parts, what))

    return _Run(
        outputs=dict(zip(names, (joined(each, "outputs") for each in found), strict=True)),
        targets=joined(targets, "targets"),
        parity={names[at]: error if isfinite(error) else None for at, error in parity.items()},
    )
