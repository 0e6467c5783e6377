"""From measurements to the parts of the report."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from mfac_compress.export import LatencyComparison, Spread
from mfac_compress.pipeline.inputs.code_sources import NOT_COVERED, CodeSources
from mfac_compress.pipeline.inputs.data import DataSplits
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.verdict.report import (
    CodeResult,
    DataResult,
    FlopsResult,
    LatencyResult,
    LeftOutResult,
    MetricResult,
    SizeResult,
    SparseKernelsResult,
    SparsityResult,
    SpreadResult,
    TensorAuditResult,
)


class MeasuredResult(NamedTuple):
    """What is measured on each sparse file."""

    metric: MetricResult
    size_bytes: SizeResult
    parity_error: float | None
    latency: tuple[LatencyResult, ...]


def measured_result(facts: Mapping[str, Any], latency: tuple[LatencyResult, ...]) -> MeasuredResult:
    """The report's form of what the stage validate says of one file."""
    sizes = facts["size_bytes"]
    dense = sizes["dense"]["compressed_bytes"]
    ratio = sizes["sparse"]["compressed_bytes"] / dense if dense else None
    parity = facts["parity_error"]
    return MeasuredResult(
        metric=MetricResult(**facts["metric"]),
        size_bytes=SizeResult(**sizes, ratio=ratio),
        parity_error=parity if parity is not None and isfinite(parity) else None,
        latency=latency,
    )


def sparsity_result(
    targets: PruneTargets, sizes: Mapping[str, int], audit: Sequence[TensorAuditResult]
) -> SparsityResult:
    """How much was removed, of the matched weights and of the whole model.

    Args:
        targets: What was pruned, and why the rest was not.
        sizes: Number of values of every parameter of the model, tied ones once.
        audit: Zeros found in the ONNX file.
    """
    counts = [tensor.onnx_zeros for tensor in audit]
    zeros = None if None in counts else sum(filter(None, counts))
    parameters = sum(sizes.values())
    asked = sum((targets.units.sparsity * targets.units.sizes).tolist())
    return SparsityResult(
        target=asked / targets.weights,
        onnx=None if zeros is None else zeros / sum(tensor.size for tensor in audit),
        weights=targets.weights,
        parameters=parameters,
        model=None if zeros is None else zeros / parameters,
        left_out={
            name: LeftOutResult(reason=reason, size=sizes.get(name, 0))
            for name, reason in targets.left_out.items()
        },
    )


def data_result(data: DataSplits) -> DataResult:
    """What is known of the samples."""
    return DataResult(
        samples={split.name: len(split) for split in data},
        shared={f"{one}, {other}": count for (one, other), count in data.overlap.items()},
        repeated=data.repeats,
        unstable=tuple(data.unstable),
    )


def code_result(code: CodeSources) -> CodeResult:
    """What is known of the user's code by the end of the run."""
    return CodeResult(
        files={**code.files, **code.since()},
        not_reusable=code.unseen,
        not_covered=NOT_COVERED,
    )


def sparse_kernels_result(
    facts: Mapping[str, Any],
    measured: Mapping[str, Any] | None,
    latency: tuple[LatencyResult, ...],
) -> SparseKernelsResult:
    """The report's form of what is known of the file with sparse operators.

    Args:
        facts: Of the stage accelerate, decided.
        measured: What the stage validate says of the candidate; None where there is none.
        latency: Of the candidate.
    """
    absent = {"metric": None, "size_bytes": None, "parity_error": None, "latency": latency}
    used = measured is not None and facts["state"] == "used"
    found = measured_result(measured, latency)._asdict() if used else absent
    said = {key: value for key, value in facts.items() if key != "batch_size"}
    return SparseKernelsResult(**said, **found)


def flops_result(facts: Mapping[str, Any]) -> FlopsResult:
    """Sum up the layers that the stage accelerate lists. Without any, nothing is saved."""
    dense, sparse = (
        sum(layer[count] or 0 for layer in facts["layers"]) for count in ("macs", "kept_macs")
    )
    return FlopsResult(
        batch_size=facts["batch_size"],
        dense=dense,
        sparse=sparse,
        ratio=sparse / dense if dense else 1.0,
    )


def latency_result(comparison: LatencyComparison) -> LatencyResult:
    """The report's form of a comparison."""
    dense, sparse = comparison.dense, comparison.sparse
    return LatencyResult(
        batch_size=comparison.workload.batch_size,
        threads=comparison.workload.threads,
        rounds=comparison.rounds,
        runs=comparison.runs,
        calls_per_run=comparison.calls_per_run,
        dense_wall=_spread(dense.wall),
        sparse_wall=_spread(sparse.wall),
        dense_cpu=_spread(dense.cpu),
        sparse_cpu=_spread(sparse.cpu),
        clock=comparison.clock,
        ratio=comparison.ratio.median,
        interval=(comparison.ratio.low, comparison.ratio.high),
        finding=comparison.finding,
        verdict=comparison.verdict,
    )


def _spread(spread: Spread | None) -> SpreadResult | None:
    return spread and SpreadResult(median_ms=spread.median_ms, iqr_ms=spread.iqr_ms)
