"""The rows of the report's tables, for Markdown and for the terminal alike."""

from collections.abc import Callable, Iterator, Sequence

from mfac_compress.export import LatencyComparison, Spread, Workload
from mfac_compress.pipeline.file_names import DENSE, IN_8_BITS, REFERENCES
from mfac_compress.pipeline.inputs.memory import readable_bytes
from mfac_compress.pipeline.stages.accelerate import Kernels
from mfac_compress.pipeline.stages.quantize import Quantised
from mfac_compress.pipeline.stages.validate import Measured
from mfac_compress.pipeline.verdict.report import Report

Row = Sequence[str]

LATENCY_HEAD = (
    "variant", "batch", "lengths", "threads", "clock", "reference", "reference ms (IQR)",
    "ms (IQR)", "verdict",
)  # fmt: skip
LAYER_HEAD = ("layer", "zeros", "sparse operator", "dense ms", "sparse ms", "why")
AUDIT_HEAD = (
    "variant", "tensor", "weights", "removed", "zero in the file", "after optimisation", "intact",
)  # fmt: skip
PRECISION_HEAD = ("weight", "operator", "weights", "computed in", "divergence by it alone")
REPAIR_HEAD = ("stage", "method", "divergence before", "after", "kept")


def measured_rows(report: Report) -> Iterator[Row]:
    """A row for each measurement, with a cell for each variant after its name."""
    metric, variants = report.metric, list(report.variants.values())
    interval = f"  {metric.confidence:.0%} interval"
    yield metric.name, *(f"{one.metric.value:.4g}" for one in variants)
    yield interval, *(_ends(one.metric.interval) for one in variants)
    yield "  drop", *_of_others(report, lambda one: f"{one.metric.drop:.4g}")
    yield f"  {interval}", *_of_others(report, lambda one: _ends(one.metric.drop_interval))
    for name in report.further_metrics:
        yield from _further_rows(report, name)
    yield "zeros of matched", *_of_pruned(report, lambda one: _share(one.sparsity))
    yield "zeros of the model", *_of_pruned(report, lambda one: _share(one.model_sparsity))
    yield "tensors intact", *_of_pruned(report, _intact)
    yield "file, compressed", *(readable_bytes(one.size.compressed_bytes) for one in variants)
    yield "  ratio to dense", *_of_others(report, lambda one: f"{one.size.ratio:.3f}")
    yield "  as it is", *(readable_bytes(one.size.raw_bytes) for one in variants)
    if any(one.size.library_bytes for one in variants):
        libraries = [one.size.library_bytes for one in variants]
        yield "  library beside it", *(readable_bytes(size) if size else "" for size in libraries)
    yield "parity error", *(_parity(name, one) for name, one in report.variants.items())
    yield "MACs in theory", *(_flops(report, name) for name in report.variants)


def _further_rows(report: Report, name: str) -> Iterator[Row]:
    """A further metric, and the interval that its gate compares."""
    yield name, *(f"{one.further_metrics[name].value:.4g}" for one in report.variants.values())
    ends = _of_others(report, lambda one: _ends(one.further_metrics[name].drop_interval))
    yield f"  {report.metric.confidence:.0%} interval of drop", *ends


def latency_rows(report: Report) -> Iterator[Row]:
    """Rows for each workload: the times of each variant, and what they say.

    Over the dense file, and where there are files in 8 bits over the dense one in 8 bits.
    """
    for workload in workloads_of(report):
        batch, _, others = str(workload).partition(", ")
        times = (_median_ms(report, name, workload) for name in report.variants)
        yield f"latency, {batch}", *times
        for over, compared in _compared(report):
            found = [_at(workload, compared(one)) for one in report.variants.values()]
            yield f"  {others}{over}", *(one.verdict if one else "" for one in found)


def workloads_of(report: Report) -> list[Workload]:
    """All that latency was measured at."""
    measured = [one.workload for each in report.variants.values() for one in each.latency]
    return list(dict.fromkeys(measured))


def latency_details(report: Report) -> Iterator[Row]:
    """Each comparison, on the clocks that were read; :data:`LATENCY_HEAD` names the cells."""
    for name, measured in report.variants.items():
        for one in (*measured.latency, *measured.latency_int8):
            clocks = [("thread CPU", one.reference_time.cpu, one.time.cpu)]
            clocks.append(("wall", one.reference_time.wall, one.time.wall))
            for clock, reference, own in clocks:
                if reference and own:
                    lengths = ", ".join(f"{k} {v}" for k, v in one.workload.lengths.items())
                    yield (
                        name, str(one.workload.batch_size), lengths, str(one.workload.threads),
                        clock, one.reference, _milliseconds(reference), _milliseconds(own),
                        one.verdict if clock == one.clock else "",
                    )  # fmt: skip


def layer_rows(kernels: Kernels) -> Iterator[Row]:
    """A row for each layer, with its times at every workload, as :data:`LAYER_HEAD` says."""
    for layer in kernels.layers:
        yield (
            layer.weight or layer.name,
            "" if layer.sparsity is None else f"{layer.sparsity:.1%}",
            f"yes, blocks of {layer.block}" if layer.block else "no",
            " / ".join(f"{time.dense_ms:.3g}" for time in layer.times),
            " / ".join(f"{time.sparse_ms:.3g}" for time in layer.times),
            layer.reason,
        )


def audit_rows(report: Report) -> Iterator[Row]:
    """A row for each pruned tensor of each variant; :data:`AUDIT_HEAD` names the cells."""
    for name, measured in report.variants.items():
        for tensor in measured.audit:
            zeros = (tensor.onnx_zeros, tensor.optimized_zeros)
            yield (
                name,
                tensor.name,
                f"{tensor.size:,}",
                f"{tensor.mask_zeros:,}",
                *("not found" if count is None else f"{count:,}" for count in zeros),
                "yes" if tensor.intact else "NO",
            )


def repair_rows(report: Report) -> Iterator[Row]:
    """A row for each repair of the pruned layers; :data:`REPAIR_HEAD` names the cells."""
    for stage, reconstructed in report.reconstruction.items():
        for repair in reconstructed.repairs:
            divergences = map(divergence_text, repair.divergence)
            kept = "yes" if repair.kept else "no: it is not nearer to the dense model"
            yield stage, repair.method.replace("_", " "), *divergences, kept


def divergence_text(divergence: float | None) -> str:
    """A divergence in words; None where outputs were not finite."""
    return "not finite" if divergence is None else f"{divergence:.4g}"


def precision_rows(quantised: Quantised) -> Iterator[Row]:
    """A row for each layer that could be in 8 bits; :data:`PRECISION_HEAD` names the cells."""
    for layer in quantised.layers:
        yield (
            layer.weight,
            layer.operator,
            f"{layer.size:,}",
            "8 bits" if layer.int8 else "float",
            "" if layer.cost is None else _number(layer.cost),
        )


def _compared(
    report: Report,
) -> Iterator[tuple[str, Callable[[Measured], Sequence[LatencyComparison]]]]:
    """What files are compared with in time: words for it, and where the comparisons are."""
    yield "", lambda one: one.latency
    if any(one.latency_int8 for one in report.variants.values()):
        yield ", over dense-int8", lambda one: one.latency_int8


def _of_others(report: Report, cell: Callable[[Measured], str]) -> Iterator[str]:
    """A cell for each variant but the dense one."""
    for name, measured in report.variants.items():
        yield "" if name == DENSE else cell(measured)


def _parity(name: str, measured: Measured) -> str:
    """Of files that compute in float what PyTorch does."""
    if name in REFERENCES:
        return ""
    return "in 8 bits" if name in IN_8_BITS else _number(measured.parity_error)


def _of_pruned(report: Report, cell: Callable[[Measured], str]) -> Iterator[str]:
    """A cell for each variant of the pruned model; empty for the dense files."""
    for name, measured in report.variants.items():
        yield "" if name in REFERENCES else cell(measured)


def _ends(interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"


def _share(sparsity: float | None) -> str:
    return "not found" if sparsity is None else f"{sparsity:.2%}"


def _intact(measured: Measured) -> str:
    return f"{sum(tensor.intact for tensor in measured.audit)} of {len(measured.audit)}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def _flops(report: Report, name: str) -> str:
    """Multiply-accumulates of one call, where its layers were counted."""
    for kernels in report.kernels.values():
        if name in REFERENCES:
            return f"{kernels.flops.dense / 1e6:,.1f} M"
        if name == kernels.made_from or report.variants[name].made_from == kernels.made_from:
            return f"{kernels.flops.sparse / 1e6:,.1f} M"
    return ""


def _at(workload: Workload, compared: Sequence[LatencyComparison]) -> LatencyComparison | None:
    return next((one for one in compared if one.workload == workload), None)


def _median_ms(report: Report, name: str, workload: Workload) -> str:
    """A variant's own time, or that which others were compared with."""
    own = _at(workload, report.variants[name].latency)
    found = [(one, one.time) for one in [own] if one]
    for other in report.variants.values():
        one = _at(workload, other.latency)
        if one and one.reference == name:
            found.append((one, one.reference_time))
    return f"{found[0][1].by(found[0][0].clock).median_ms:.3f} ms" if found else ""


def _milliseconds(spread: Spread) -> str:
    return f"{spread.median_ms:.3f} ({spread.iqr_ms:.3f})"
