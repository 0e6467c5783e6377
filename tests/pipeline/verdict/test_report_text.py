"""The report for people: sizes that can be told apart, one table."""

import io
import json
from dataclasses import replace

from rich.console import Console

from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.pipeline.verdict.report_text import markdown, print_verdict


def _shown(report, width=100):
    output = io.StringIO()
    print_verdict(report, Console(file=output, width=width))
    return output.getvalue()


def test_small_files_have_different_sizes_in_words(finished):
    report = Report.model_validate(json.loads((finished.output / "report.json").read_text()))
    raw = f"{report.variants['sparse'].size.raw_bytes / 1e3:.1f} kB"
    assert raw in _shown(report)
    assert raw in markdown(report, {})


def test_names_with_brackets_stay(finished):
    report = json.loads((finished.output / "report.json").read_text())
    report["metric"]["name"] = "my[red].py:f1"
    assert "my[red].py:f1" in _shown(Report.model_validate(report))


def test_names_and_figures_stay_in_one_line_in_a_log(finished):
    report = Report.model_validate(json.loads((finished.output / "report.json").read_text()))
    lines = _shown(report).splitlines()
    latency = report.variants["sparse"].latency[0]
    name = f"latency, batch {latency.workload.batch_size} "
    (place,) = [place for place, line in enumerate(lines) if name in line]
    assert lines[place].count(" ms") == 2
    assert lines[place + 1].split()[:2] == ["1", "thread"]


def _report(finished, **changes):
    report = json.loads((finished.output / "report.json").read_text())
    for key, value in changes.items():
        report[key] = report[key] | value if isinstance(value, dict) else value
    return Report.model_validate(report)


def test_the_verdict_comes_last_and_fits_80_columns(finished):
    report = _report(finished)
    lines = _shown(report, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("PASS: 3 gates passed; zeros: ")
    for gate in report.gates:
        (line,) = [line for line in lines if gate.name in line]
        assert line.split()[0] == "pass"
        assert f"{gate.threshold:g}" in line


def test_a_failed_gate_says_why_below_the_gates(finished):
    gate = {
        "name": "max_metric_drop",
        "variant": "sparse",
        "threshold": 0.01,
        "measured": None,
        "passed": False,
        "reason": "a long reason " * 12,
    }
    shown = _shown(_report(finished, verdict="fail", gates=[gate]), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert " FAIL  max_metric_drop     not measured, must be at most 0.01" in shown
    assert "max_metric_drop: a long reason" in shown
    assert "FAIL: 1 of 1 gate failed" in shown.splitlines()[-1]


def test_without_gates_nothing_is_judged(finished):
    report = _report(finished, verdict="none", gates=[])
    for text in (_shown(report, width=80).splitlines()[-1], markdown(report, {}).splitlines()[0]):
        assert "NOT JUDGED" in text
        assert "PASS" not in text
    assert "nothing was judged" in markdown(report, {})


def test_the_verdict_says_of_what_the_zeros_are(finished):
    sparsity = {
        "weights": 128,
        "parameters": 14530,
        "left_out": {"lstm.weight_hh_l0": {"reason": "not a linear weight", "size": 9216}},
    }
    measured = {"sparsity": 0.49, "model_sparsity": 0.0043}
    report = _with_variant(_report(finished, sparsity=sparsity), "sparse", **measured)
    says = "zeros: 49.0% of matched (only 0.9% of the model), 0.4% of all 14,530 parameters"
    assert says in " ".join(_shown(report, width=80).split())
    text = markdown(report, {})
    assert says in text.splitlines()[0]
    assert "| lstm.weight_hh_l0 | 9,216 | not a linear weight |" in text


def test_the_verdict_does_not_name_the_share_that_is_matched_where_it_is_large(finished):
    for weights, is_named in ((2_905, True), (2_906, False)):  # 20% are 2,906 of 14,530
        sparsity = {"weights": weights, "parameters": 14_530}
        assert ("of the model)" in _shown(_report(finished, sparsity=sparsity))) == is_named


def test_warnings_are_shown_and_written(finished):
    report = _report(finished, warnings=["check [this]"])
    assert "warning: check [this]" in _shown(report)
    assert "check [this]" in markdown(report, {})


def test_a_report_without_intervals_zeros_or_parity_is_readable(finished):
    report = _report(finished)
    metric = replace(report.variants["sparse"].metric, interval=None, drop_interval=None)
    report = _with_variant(
        report, "sparse", metric=metric, sparsity=None, model_sparsity=None, parity_error=None
    )
    for text in (_shown(report, width=200), markdown(report, {})):
        assert "no interval" in text
        assert "not found in model.onnx" in text
        assert "not finite" in text


def _with_variant(report, name, *, like="sparse", **changes):
    variants = report.variants | {name: replace(report.variants[like], **changes)}
    return report.model_copy(update={"variants": variants})


def test_a_new_kind_of_file_is_a_column_of_its_own(finished):
    report = _report(finished)
    for name in ("sparse+kernels", "int8", "int8+kernels"):
        size = replace(report.variants["sparse"].size, library_bytes=7000 * ("+" in name))
        report = _with_variant(report, name, file=f"{name}.onnx", size=size)
    lines = _shown(report, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if "  dense  " in line]
    assert heads == [["dense", "sparse", "sparse+kernels"], ["dense", "int8", "int8+kernels"]]
    assert sum(line.split()[-1:] == ["kB"] and "library" in line for line in lines) == 2
    text = markdown(report, {})
    assert "| int8 (int8.onnx) |" in text
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_times_of_each_file_stand_in_its_column(finished):
    """Those of the dense file are the ones that the others were compared with."""
    report = _report(finished)
    latency = report.variants["sparse"].latency[0]
    (line,) = [line for line in _shown(report).splitlines() if "latency, batch 1 " in line]
    times = (latency.reference_time.cpu, latency.time.cpu)
    assert line.split()[3::2] == [f"{time.median_ms:.3f}" for time in times]


def test_further_metrics_take_two_rows_and_their_gates_a_short_name(finished):
    report = _report(finished)
    drop = report.variants["sparse"].metric
    for name, value in (("dense", 0.25), ("sparse", 0.31)):
        changed = replace(drop, value=value, drop_interval=(-0.02, 0.125))
        report = _with_variant(report, name, like=name, further_metrics={"inconsistency": changed})
    name = "further_metrics.inconsistency.max_metric_drop"
    failed = replace(report.gates[0], name=name, measured=0.125, threshold=0.1, passed=False)
    report = report.model_copy(
        update={
            "further_metrics": {"inconsistency": report.metric},
            "gates": (*report.gates, failed),
        }
    )

    lines = _shown(report, width=80).splitlines()

    assert max(map(len, lines)) <= 80
    (place,) = [place for place, line in enumerate(lines) if line.split()[:1] == ["inconsistency"]]
    assert lines[place].split() == ["inconsistency", "0.25", "0.31"]
    assert lines[place + 1].split() == ["95%", "interval", "of", "drop", "-0.02", "to", "0.125"]
    shown = " FAIL  inconsistency.max_metric_drop  0.125, must be at most 0.1"
    assert shown in lines
    assert f"| {name} | sparse |" in markdown(report, {})
    assert "| inconsistency | 0.25 | 0.31 |" in markdown(report, {})
