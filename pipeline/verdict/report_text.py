"""The report for people: a page of Markdown, and the verdict table of the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from mfac_compress.pipeline.file_names import ACCELERATED, SPARSE
from mfac_compress.pipeline.inputs.memory import readable_bytes
from mfac_compress.pipeline.terminal import add_row, plain_table
from mfac_compress.pipeline.verdict.kernels_text import LAYER_HEAD, kernels_summary, layer_rows
from mfac_compress.pipeline.verdict.report import (
    CodeResult,
    GateResult,
    LatencyResult,
    Report,
    SparsityResult,
    SpreadResult,
)

Rows = list[Sequence[str]]
_NAME_WIDTH = 30


def markdown(report: Report, seconds: Mapping[str, float]) -> str:
    """The whole report as Markdown.

    Args:
        report: What was measured.
        seconds: Time of each stage.
    """
    parts = [
        f"# {_headline(report)}",
        *(f"**Warning.** {warning}" for warning in report.warnings),
        "## Gates",
        f"Of {report.artifact}.\n\n{_table(('gate', 'result', 'why'), _gate_rows(report.gates))}"
        if report.gates
        else "The recipe sets none, so nothing was judged.",
        "## Measured in ONNX Runtime",
        _table(("", "dense", "sparse", ""), _measured_rows(report)),
        "## Latency",
        _latency_text(report),
        "## Sparse kernels",
        kernels_summary(report.sparse_kernels),
        _table(LAYER_HEAD, layer_rows(report.sparse_kernels.layers)),
        "## Zeros",
        _table(
            ("tensor", "weights", "removed", "zero in the file", "after optimisation", "intact"),
            _audit_rows(report),
        ),
        _left_out_text(report.sparsity),
        "## Your code that these results depend on",
        _code_text(report.code),
        "## Time",
        _table(("stage", "seconds"), [(stage, f"{s:.1f}") for stage, s in seconds.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def print_verdict(report: Report, console: Console) -> None:
    """The measurements, the gates, and at last the verdict: readable at 80 columns."""
    table = plain_table("", "", "dense", "sparse", "")
    for column in table.columns[:3]:
        column.no_wrap = True
    for row in [*_measured_rows(report), *_latency_rows(report), *_kernels_rows(report)]:
        add_row(table, "\n".join(wrap(row[0], _NAME_WIDTH)), *row[1:])
    console.print(table)
    for gate in report.gates:
        result = Text("pass" if gate.passed else "FAIL", "green" if gate.passed else "bold red")
        console.print(Text.assemble(" ", result, f"  {gate.name:<20}{_compared(gate)}"))
    for gate in report.gates:
        if not gate.passed:
            console.print(Text(f"{gate.name}: {gate.reason}."), soft_wrap=False)
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}", "yellow"))
    color = {"pass": "green", "none": "yellow", "fail": "red"}[report.verdict]
    console.print(Text(_headline(report), f"bold {color}"))


def _compared(gate: GateResult) -> str:
    bound = "at most" if gate.name.startswith("max_") else "at least"
    measured = "not measured" if gate.measured is None else f"{gate.measured:.4g}"
    return f"{measured}, must be {bound} {gate.threshold:g}"


def _headline(report: Report) -> str:
    """The verdict, and how much of the model was removed."""
    failed = sum(not gate.passed for gate in report.gates)
    of = f"{len(report.gates)} gate{'s' * (len(report.gates) != 1)}"
    if report.artifact != SPARSE:
        of += f" of {report.artifact}"
    verdict = {
        "none": "NOT JUDGED: no gates set",
        "pass": f"PASS: {of} passed",
        "fail": f"FAIL: {failed} of {of} failed",
    }[report.verdict]
    return f"{verdict}; zeros: {_zeros(report.sparsity)}"


def _zeros(sparsity: SparsityResult) -> str:
    if sparsity.onnx is None or sparsity.model is None:
        return f"not found in {SPARSE}"
    return (
        f"{sparsity.onnx:.1%} of matched, {sparsity.model:.1%} of all {sparsity.parameters:,} "
        "parameters"
    )


def _gate_rows(gates: Iterable[GateResult]) -> Rows:
    return [(gate.name, "pass" if gate.passed else "FAIL", gate.reason) for gate in gates]


def _measured_rows(report: Report) -> Rows:
    metric, size = report.metric, report.size_bytes
    drop = f"drop {metric.drop:.4g}, {metric.confidence:.0%}: {_ends(metric.interval)}"
    found = report.sparsity.onnx
    intact = sum(tensor.intact for tensor in report.audit)
    parity = report.parity_error
    return [
        (metric.name, f"{metric.dense:.4g}", f"{metric.sparse:.4g}", drop),
        (
            "sparsity",
            "",
            "not found" if found is None else f"{found:.4f}",
            f"of {report.sparsity.weights:,} matched weights; intact in {intact} of "
            f"{len(report.audit)} tensors",
        ),
        (
            "",
            "",
            "" if report.sparsity.model is None else f"{report.sparsity.model:.4f}",
            f"of all {report.sparsity.parameters:,} parameters",
        ),
        (
            "file, compressed",
            readable_bytes(size.dense.compressed_bytes),
            readable_bytes(size.sparse.compressed_bytes),
            "ratio not finite" if size.ratio is None else f"ratio {size.ratio:.3f}",
        ),
        (
            "file",
            readable_bytes(size.dense.raw_bytes),
            readable_bytes(size.sparse.raw_bytes),
            "",
        ),
        (
            "parity error",
            "",
            "not finite" if parity is None else f"{parity:.2g}",
            "largest difference from PyTorch",
        ),
    ]


def _latency_rows(report: Report) -> Rows:
    """First of the plain file, then of the one with sparse operators."""
    return [
        (
            f"{name}, batch {one.batch_size}, {one.threads} thread{'s' * (one.threads > 1)}",
            f"{_clocked(one, 'dense').median_ms:.3f} ms",
            f"{_clocked(one, 'sparse').median_ms:.3f} ms",
            one.verdict,
        )
        for name, latency in (
            ("latency", report.latency),
            ("kernels", report.sparse_kernels.latency),
        )
        for one in latency
    ]


def _kernels_rows(report: Report) -> Rows:
    """What the file with sparse operators differs in, or why there is none."""
    kernels, flops = report.sparse_kernels, report.flops
    theory = "in theory, not measured"
    rows = [("FLOPs", f"{flops.dense / 1e6:,.1f} M", f"{flops.sparse / 1e6:,.1f} M", theory)]
    if kernels.metric is None or kernels.size_bytes is None:
        return [*rows, (ACCELERATED, "", "not written", kernels.reason)]
    parity = kernels.parity_error
    error = "not finite" if parity is None else f"{parity:.2g}"
    return [
        *rows,
        (
            ACCELERATED,
            "",
            f"{kernels.metric.sparse:.4g}",
            f"{kernels.metric.name}, drop {kernels.metric.drop:.4g}; parity error {error}; "
            f"{readable_bytes(kernels.size_bytes.sparse.compressed_bytes)} compressed",
        ),
    ]


def _clocked(result: LatencyResult, which: str) -> SpreadResult:
    """The times of the clock that the ratio is taken on."""
    return getattr(result, f"{which}_{'cpu' if result.clock == 'thread CPU' else 'wall'}")


def _latency_text(report: Report) -> str:
    """Three things apart: the plain file, the file with sparse operators, and theory."""
    flops, machine = report.flops, report.machine
    theory = (
        f"FLOPs in theory: {flops.sparse:,} of {flops.dense:,} multiplications at batch "
        f"{flops.batch_size} ({flops.ratio:.3f}). Counted, not measured."
    )
    if not (report.latency or report.sparse_kernels.latency):
        return f"Not measured.\n\n{theory}"
    rows = []
    for name, latency in (
        (f"{SPARSE}, stock ONNX Runtime", report.latency),
        (f"{ACCELERATED}, with the sparse kernels", report.sparse_kernels.latency),
    ):
        for one in latency:
            for clock, dense, sparse in (
                ("thread CPU", one.dense_cpu, one.sparse_cpu),
                ("wall", one.dense_wall, one.sparse_wall),
            ):
                if dense and sparse:
                    says = one.verdict if clock == one.clock else ""
                    where = (name, str(one.batch_size), str(one.threads), clock)
                    rows.append((*where, _milliseconds(dense), _milliseconds(sparse), says))
    head = ("file", "batch", "threads", "clock", "dense ms (IQR)", "sparse ms (IQR)", "verdict")
    return (
        f"{_table(head, rows)}\n\nONNX Runtime on {machine.cpu}, {machine.cores} cores, load "
        f"{machine.load_1min:g}. Median of interleaved runs and interquartile range; the "
        f"interval is of the medians of rounds, for each of which both files are opened anew. The "
        f"dense file always runs in stock ONNX Runtime.\n\n{theory}"
    )


def _milliseconds(spread: SpreadResult) -> str:
    return f"{spread.median_ms:.3f} ({spread.iqr_ms:.3f})"


def _audit_rows(report: Report) -> Rows:
    def count(value: int | None) -> str:
        return "not found" if value is None else f"{value:,}"

    return [
        (
            tensor.name,
            f"{tensor.size:,}",
            f"{tensor.mask_zeros:,}",
            count(tensor.onnx_zeros),
            count(tensor.optimized_zeros),
            "yes" if tensor.intact else "NO",
        )
        for tensor in report.audit
    ]


def _left_out_text(sparsity: SparsityResult) -> str:
    """How much of the model could not be pruned, and why."""
    total = f"Zeros: {_zeros(sparsity)}."
    if not sparsity.left_out:
        return f"{total} No parameter was left out."
    rows = [(name, f"{one.size:,}", one.reason) for name, one in sparsity.left_out.items()]
    return f"{total} Left out:\n\n{_table(('parameter', 'size', 'why'), rows)}"


def _ends(interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def _code_text(code: CodeResult) -> str:
    rows = [(path, digest[:12]) for path, digest in code.files.items()]
    files = _table(("file of your code", "SHA-256"), rows) if rows else "No code of yours is used."
    hidden = f"\n\nNot hashed, so nothing is reused: {', '.join(code.not_reusable)}."
    return f"{files}{hidden if code.not_reusable else ''}\n\nNot covered: {code.not_covered}."


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
