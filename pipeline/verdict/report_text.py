"""The report for people: a page of Markdown, and the verdict table of the terminal."""

from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfac_compress.pipeline.file_names import DENSE, DENSE_INT8, ONNX_FILES, SPARSE
from mfac_compress.pipeline.inputs.code_sources import CHANGED
from mfac_compress.pipeline.stages.rounding import Rounding
from mfac_compress.pipeline.terminal import add_row, plain_table
from mfac_compress.pipeline.verdict import tables
from mfac_compress.pipeline.verdict.gates import Gate, is_upper_bound
from mfac_compress.pipeline.verdict.inputs import Code
from mfac_compress.pipeline.verdict.recovery_text import EPOCH_HEAD, epoch_rows, recovery_line
from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.pipeline.verdict.tables import Row
from mfac_compress.pipeline.verdict.warnings import LITTLE

_NAME_WIDTH, _COLUMN_WIDTH = 24, 18


def markdown(report: Report, seconds: Mapping[str, float]) -> str:
    """The whole report as Markdown.

    Args:
        report: What was measured.
        seconds: Time of each stage.
    """
    gates = [
        (gate.name, gate.variant, "pass" if gate.passed else "FAIL", gate.reason)
        for gate in report.gates
    ]
    parts = [
        f"# {_headline(report)}",
        *(f"**Warning.** {warning}" for warning in report.warnings),
        "## Gates",
        f"{_judged(report)}\n\n{_table(('gate', 'variant', 'result', 'why'), gates)}"
        if gates
        else "The recipe sets none, so nothing was judged.",
        "## Measured in ONNX Runtime",
        _table(("", *_titles(report)), tables.measured_rows(report)),
        *_repairs_text(report),
        *_recovery_text(report),
        *_precision_text(report),
        "## Latency",
        _latency_text(report),
        "## Sparse kernels",
        *_kernels_text(report),
        "## Zeros",
        _table(tables.AUDIT_HEAD, tables.audit_rows(report)),
        _left_out_text(report),
        "## Your code that these results depend on",
        _code_text(report.code),
        "## Time",
        _table(("stage", "seconds"), [(stage, f"{s:.1f}") for stage, s in seconds.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def print_verdict(report: Report, console: Console) -> None:
    """The measurements, the gates, and at last the verdict: readable at 80 columns."""
    for part in _side_by_side(report, console.width):
        console.print(_measurements(part))
    for line in (
        *_unwritten(report),
        *_repaired(report),
        *_recovered(report),
        *_precision(report),
    ):
        console.print(Text(line))
    width = max([20, *(len(_short(gate)) + 2 for gate in report.gates)])
    for gate in report.gates:
        result = Text("pass" if gate.passed else "FAIL", "green" if gate.passed else "bold red")
        of = "" if gate.variant == report.judged else f" ({gate.variant})"
        console.print(Text.assemble(" ", result, f"  {_short(gate):<{width}}{_compared(gate)}{of}"))
    for gate in report.gates:
        if not gate.passed:
            of = "" if gate.variant == report.judged else f" of {gate.variant}"
            console.print(Text(f"{gate.name}{of}: {gate.reason}."), soft_wrap=False)
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}", "yellow"))
    color = {"pass": "green", "none": "yellow", "fail": "red"}[report.verdict]
    console.print(Text(_headline(report), f"bold {color}"))


def failed_gates(report: Report) -> str:
    """A failed verdict in one line."""
    names = ", ".join(dict.fromkeys(gate.name for gate in report.gates if not gate.passed))
    return f"{_headline(report)}; failed: {names}"


def _side_by_side(report: Report, width: int) -> Iterator[Report]:
    """The report in parts, each of the dense file and as many others as there is room for."""
    others = [name for name in report.variants if name != DENSE]
    room = max(1, (width - _NAME_WIDTH) // _COLUMN_WIDTH - 1)
    for start in range(0, len(others), room):
        names = [DENSE, *others[start : start + room]]
        variants = {name: report.variants[name] for name in names}
        yield report.model_copy(update={"variants": variants})


def _measurements(report: Report) -> Table:
    table = plain_table("", "", *report.variants)
    table.columns[0].no_wrap = True
    for column, name in zip(table.columns[1:], report.variants, strict=True):
        column.min_width = len(name)
    for name, *cells in (*tables.measured_rows(report), *tables.latency_rows(report)):
        label = name if len(name) <= _NAME_WIDTH else "\n".join(wrap(name, _NAME_WIDTH))
        add_row(table, label, *cells)
    return table


def _titles(report: Report) -> list[str]:
    return [
        f"{name} ({measured.file}{'' if measured.written else ', not written'})"
        for name, measured in report.variants.items()
    ]


def _short(gate: Gate) -> str:
    """A gate's name, in few columns."""
    return gate.name.removeprefix("further_metrics.")


def _compared(gate: Gate) -> str:
    bound = "at most" if is_upper_bound(gate.name) else "at least"
    measured = "not measured" if gate.measured is None else f"{gate.measured:.4g}"
    return f"{measured}, must be {bound} {gate.threshold:g}"


def _headline(report: Report) -> str:
    """The verdict, and how much of the model was removed."""
    failed = sum(not gate.passed for gate in report.gates)
    of = f"{len(report.gates)} gate{'s' * (len(report.gates) != 1)}"
    if report.judged != SPARSE:
        of += f" of {report.shipped.file}"
    verdict = {
        "none": "NOT JUDGED: no gates set",
        "pass": f"PASS: {of} passed",
        "fail": f"FAIL: {failed} of {of} failed",
    }[report.verdict]
    return f"{verdict}; zeros: {_zeros(report)}"


def _zeros(report: Report) -> str:
    """The zeros of the file that ships, and of how little they are a share, if it is little."""
    shipped, sparsity = report.shipped, report.sparsity
    if shipped.sparsity is None or shipped.model_sparsity is None:
        return f"not found in {shipped.file}"
    matched = "matched"
    if sparsity.share < LITTLE:
        matched += f" (only {sparsity.share:.1%} of the model)"
    return (
        f"{shipped.sparsity:.1%} of {matched}, {shipped.model_sparsity:.1%} of all "
        f"{sparsity.parameters:,} parameters"
    )


def _unwritten(report: Report) -> list[str]:
    """Why files with sparse operators were not written."""
    return [
        f"{ONNX_FILES[name]} not written: {kernels.reason}."
        for name, kernels in report.kernels.items()
        if kernels.state != "used"
    ]


def _repaired(report: Report) -> list[str]:
    """What became of the repairs of pruned layers, in a line for each method."""
    repairs = [one for stage in report.reconstruction.values() for one in stage.repairs]
    lines = []
    for method in dict.fromkeys(repair.method for repair in repairs):
        own = [repair for repair in repairs if repair.method == method]
        before, after = map(tables.divergence_text, own[-1].divergence)
        lines.append(
            f"reconstruct, {method.replace('_', ' ')}: {sum(one.kept for one in own)} of "
            f"{len(own)} kept; divergence from dense at the last {before} to {after}."
        )
    return lines


def _repairs_text(report: Report) -> Iterable[str]:
    """The repairs of pruned layers, and what they did not reach."""
    if not report.reconstruction:
        return
    yield "## Repair of pruned layers"
    yield _table(tables.REPAIR_HEAD, tables.repair_rows(report))
    yield (
        "On calibration samples without labels. The divergence is that of the outputs from the "
        "dense model's on held-out calibration samples; a repair that does not lower it is not "
        "kept."
    )
    *_, last = report.reconstruction.values()
    if last.left_out:
        yield "Not repaired:"
        yield _table(("weight", "why"), last.left_out.items())


def _recovered(report: Report) -> Iterator[str]:
    if report.recovery.loss_by_epoch or report.recovery.loop:
        yield recovery_line(report.recovery)


def _recovery_text(report: Report) -> Iterator[str]:
    """The training after the last pruning step, epoch by epoch."""
    for line in _recovered(report):
        yield "## Recovery"
        yield line
    if report.recovery.loss_by_epoch:
        yield _table(EPOCH_HEAD, epoch_rows(report.recovery))


def _judged(report: Report) -> str:
    """Which files the gates apply to."""
    text = f"Of {report.judged}, {report.shipped.file}."
    others = dict.fromkeys(gate.variant for gate in report.gates if gate.variant != report.judged)
    if others:
        text += (
            f" Those on the metric, zeros and parity also hold of {', '.join(others)}: whatever is "
            "written may be deployed."
        )
    return text


def _precision(report: Report) -> Iterator[str]:
    """How much is in 8 bits, in a line."""
    quantised = report.quantisation
    if quantised is None:
        return
    inside = sum(layer.int8 for layer in quantised.layers)
    solved = f", {quantised.solved} rounded by the layerwise solver" if quantised.rounding else ""
    if quantised.trained:
        solved += ", activations by the ranges of the quantization-aware epochs"
    yield (
        f"quantize, {quantised.mode}: {inside} of {len(quantised.layers)} layers "
        f"({quantised.share:.1%} of their weights) in 8 bits{solved}; "
        f"divergence from {ONNX_FILES[SPARSE]} {quantised.divergence:.3g}."
    )


def _precision_text(report: Report) -> Iterator[str]:
    """Which layers are in 8 bits, and what each of them costs."""
    quantised = report.quantisation
    if quantised is None:
        return
    yield "## Layers in 8 bits"
    yield from _precision(report)
    yield _table(tables.PRECISION_HEAD, tables.precision_rows(quantised))
    tolerance = "any" if quantised.max_divergence is None else f"{quantised.max_divergence:g}"
    yield (
        f"Divergence of the outputs from those of {ONNX_FILES[SPARSE]} on held-out calibration "
        f"samples: {quantised.all_layers:.3g} with all layers in 8 bits, {tolerance} is allowed. "
        "Layers that cost most alone are left in float until it holds; where it holds with all, "
        f"nothing else is measured. {ONNX_FILES[DENSE_INT8]} has all layers in 8 bits."
    )
    if quantised.rounding is not None:
        yield from _rounding_text(quantised.rounding)


def _rounding_text(rounding: Rounding) -> Iterator[str]:
    """How weights were rounded, and which the solver could not round."""
    better = sum(layer.solved for layer in rounding.layers)
    divergences = map(tables.divergence_text, (rounding.nearest, rounding.solved))
    yield (
        "Rounding by the layerwise solver (quantize.weight_update: obs): nearer outputs in "
        f"{better} of {len(rounding.layers)} layers on held-out calibration samples. The model's "
        "divergence is {} with all weights rounded to nearest and {} with the solver's in these "
        "layers: ".format(*divergences)
        + ("these are in the file." if rounding.kept else "the nearest are in the file.")
    )
    for layer in rounding.layers:
        if layer.reason is not None:
            yield f"{layer.weight} is rounded to nearest: {layer.reason}."


def _latency_text(report: Report) -> str:
    machine = report.machine
    if not tables.workloads_of(report):
        return "Not measured."
    return (
        f"{_table(tables.LATENCY_HEAD, tables.latency_details(report))}\n\n"
        f"ONNX Runtime on {machine.cpu}, {machine.cores} cores, load {machine.load_1min:g}. Median "
        "of interleaved runs and interquartile range; the interval is of the medians of rounds, "
        "for each of which all files are opened anew. Files that need no library run in stock "
        "ONNX Runtime."
    )


def _kernels_text(report: Report) -> Iterable[str]:
    """What each file with sparse operators computes, or why there is none, and what is theory."""
    yield from _unwritten(report)
    for name, kernels in report.kernels.items():
        replaced, flops = sum(layer.block is not None for layer in kernels.layers), kernels.flops
        if kernels.state == "used":
            yield (
                f"{ONNX_FILES[name]} computes {replaced} of {len(kernels.layers)} layers with "
                "sparse operators and needs the library in kernels/."
            )
        yield _table(tables.LAYER_HEAD, tables.layer_rows(kernels))
        workloads = dict.fromkeys(str(t.workload) for layer in kernels.layers for t in layer.times)
        if workloads:
            yield f"Milliseconds a call of the layer alone, at {' / '.join(workloads)}."
        yield (
            f"MACs in theory: {flops.sparse:,} of {flops.dense:,} multiply-accumulates at "
            f"{flops.workload} ({flops.ratio:.3f}). Counted, not measured."
        )


def _left_out_text(report: Report) -> str:
    """How much of the model could not be pruned, and why."""
    total = f"Zeros: {_zeros(report)}, {report.sparsity.pattern}."
    left_out = report.sparsity.left_out
    if not left_out:
        return f"{total} No parameter was left out."
    rows = [(name, f"{one.size:,}", one.reason) for name, one in left_out.items()]
    return f"{total} Left out:\n\n{_table(('parameter', 'size', 'why'), rows)}"


def _code_text(code: Code) -> str:
    shown = {path: one if one == CHANGED else one[:12] for path, one in code.files.items()}
    rows = list(shown.items())
    files = _table(("file of your code", "SHA-256"), rows) if rows else "No code of yours is used."
    hidden = f"\n\nNot hashed, so nothing is reused: {', '.join(code.not_reusable)}."
    return f"{files}{hidden if code.not_reusable else ''}\n\nNot covered: {code.not_covered}."


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
