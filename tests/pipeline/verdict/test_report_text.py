"""The report for people: sizes that can be told apart, one table."""

import io
import json

from rich.console import Console

from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.pipeline.verdict.report_text import markdown, print_verdict


def _shown(report, width=100):
    output = io.StringIO()
    print_verdict(report, Console(file=output, width=width))
    return output.getvalue()


def test_small_files_have_different_sizes_in_words(finished):
    report = Report.model_validate(json.loads((finished.output / "report.json").read_text()))
    raw = f"{report.size_bytes.sparse.raw_bytes / 1e3:.1f} kB"
    assert raw in _shown(report)
    assert raw in markdown(report, {})


def test_names_with_brackets_stay(finished):
    report = json.loads((finished.output / "report.json").read_text())
    report["metric"]["name"] = "my[red].py:f1"
    assert "my[red].py:f1" in _shown(Report.model_validate(report))


def test_names_and_figures_stay_in_one_line_in_a_log(finished):
    report = Report.model_validate(json.loads((finished.output / "report.json").read_text()))
    lines = _shown(report).splitlines()
    latency = report.latency[0]
    name = f"latency, batch {latency.batch_size}, 1 thread"
    (line,) = [line for line in lines if name in line]
    assert line.count(" ms") == 2


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
        "onnx": 0.49,
        "model": 0.0043,
        "weights": 128,
        "parameters": 14530,
        "left_out": {"lstm.weight_hh_l0": {"reason": "not a linear weight", "size": 9216}},
    }
    report = _report(finished, sparsity=sparsity)
    says = "zeros: 49.0% of matched, 0.4% of all 14,530 parameters"
    assert says in _shown(report, width=80).splitlines()[-1]
    text = markdown(report, {})
    assert says in text.splitlines()[0]
    assert "| lstm.weight_hh_l0 | 9,216 | not a linear weight |" in text


def test_warnings_are_shown_and_written(finished):
    report = _report(finished, warnings=["check [this]"])
    assert "warning: check [this]" in _shown(report)
    assert "check [this]" in markdown(report, {})


def test_a_report_without_intervals_or_ratio_is_readable(finished):
    report = json.loads((finished.output / "report.json").read_text())
    report["metric"] |= {"interval": None, "dense_interval": None, "sparse_interval": None}
    report["size_bytes"]["ratio"] = None
    report["sparsity"] |= {"onnx": None, "model": None}
    report = Report.model_validate(report)
    for text in (_shown(report, width=200), markdown(report, {})):
        assert "no interval" in text
        assert "ratio not finite" in text
