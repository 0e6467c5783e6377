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
