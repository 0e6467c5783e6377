"""Runs that are judged by more than one metric."""

import json

import numpy as np
import pytest

from mfac_compress.pipeline.stages import validate

OWN = """
from torch.nn.functional import cross_entropy

def bits(outputs, targets):
    return cross_entropy(outputs, targets, reduction="none").clamp(0, 20)

def share(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()

def undefined(outputs, targets):
    return float("nan")
"""
BITS = {"metric": "own.py:bits", "direction": "minimize", "range": [0, 20]}


@pytest.fixture
def judged(project):
    """A run without gradients, judged by accuracy and bits."""
    (project.folder / "own.py").write_text(OWN)
    project.recipe["task"] = {"further_metrics": {"bits": BITS}}
    project.recipe["prune"] = {"method": "magnitude", "sparsity": 0.5}
    project.recipe["recover"] = {"epochs": 0}
    project.recipe["validate"]["gates"] = {"min_sparsity": 0.5}
    return project


def _gates(**thresholds):
    return {"min_sparsity": 0.5, "further_metrics": thresholds}


def _report(project):
    return json.loads((project.output / "report.json").read_text())


def _reused(output):
    return {line.split()[0] for line in output.splitlines() if line.endswith("reused")}


def test_all_are_measured_and_those_with_a_gate_are_judged(judged):
    share = {"metric": "own.py:share", "range": [0, 1]}
    judged.recipe["task"]["further_metrics"]["share"] = share
    judged.recipe["validate"]["gates"] = _gates(
        bits={"max_metric_drop": 20, "max_metric": 20}, share={"min_metric": 0}
    )
    result = judged.run()
    assert result.exit_code == 0, result.output
    report = _report(judged)
    assert [gate["name"] for gate in report["gates"]] == [
        "further_metrics.bits.max_metric_drop",
        "further_metrics.bits.max_metric",
        "further_metrics.share.min_metric",
        "min_sparsity",
    ]
    assert list(report["further_metrics"]) == ["bits", "share"]
    assert report["further_metrics"]["bits"]["direction"] == "minimize"
    dense, sparse = (report["variants"][name]["further_metrics"] for name in ("dense", "sparse"))
    difference = sparse["bits"]["value"] - dense["bits"]["value"]
    assert sparse["bits"]["drop"] == pytest.approx(difference)
    assert sparse["share"]["value"] == pytest.approx(
        report["variants"]["sparse"]["metric"]["value"]
    )
    assert sparse["share"]["interval"][0] < sparse["share"]["value"]
    assert dense["bits"]["drop_interval"] is None


def test_a_gate_on_a_further_metric_fails_the_run(judged):
    """By the end of the interval: the drop itself is allowed."""
    judged.recipe["validate"]["gates"] = _gates(bits={"max_metric_drop": 0.1})
    result = judged.run("-q")
    assert result.exit_code == 1, result.output
    assert "failed: further_metrics.bits.max_metric_drop" in result.output
    assert _report(judged)["variants"]["sparse"]["further_metrics"]["bits"]["drop"] < 0.1
    by_point = ("--set", "validate.gates.confidence=none")
    assert judged.run(*by_point).exit_code == 0


def test_a_gate_on_a_metric_that_is_not_there_is_a_wrong_recipe(judged):
    judged.recipe["validate"]["gates"] = _gates(bit={"max_metric_drop": 20})
    result = judged.run()
    assert result.exit_code == 2
    assert "validate.gates.further_metrics.bit must be the name of a metric" in result.output
    assert "Did you mean bits?" in " ".join(result.output.split())
    assert not judged.output.exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metric": "own.py:undefined"}, "task.further_metrics.bits.metric must return finite"),
        ({"metric": "own.py:bit"}, "task.further_metrics.bits.metric must name something"),
        (BITS | {"range": [0, 1e-9]}, "task.further_metrics.bits.range must hold every value"),
        ({"metric": "spearman"}, "task.further_metrics.bits.metric spearman needs outputs [n]"),
    ],
)
def test_a_metric_that_cannot_judge_is_named_by_its_key(section, message, judged):
    judged.recipe["task"]["further_metrics"]["bits"] = section
    result = judged.run()
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_repeated_samples_are_refused_where_only_a_further_metric_has_a_gate(judged):
    with np.load(judged.folder / "test.npz") as arrays:
        x, y = (np.concatenate([arrays[name][:50]] * 4) for name in "xy")
    np.savez(judged.folder / "test.npz", x=x, y=y)
    assert judged.run().exit_code == 0
    judged.recipe["validate"]["gates"] = _gates(bits={"max_metric_drop": 20})
    result = judged.run()
    assert result.exit_code == 2
    assert "at least half of the inputs must be distinct" in " ".join(result.output.split())


def test_what_is_kept_is_judged_anew_if_a_metric_changes(judged):
    assert judged.run().exit_code == 0
    assert "validate" in _reused(judged.run("-v").output)
    # Not by a gate: all metrics are measured whatever the gates are.
    judged.recipe["validate"]["gates"] = _gates(bits={"max_metric_drop": 20})
    assert "validate" in _reused(judged.run("-v").output)
    changes = {
        "another name": {"nats": BITS},
        "another range": {"bits": BITS | {"range": [0, 30]}},
        "another function": {"bits": BITS | {"metric": "own.py:share"}},
    }
    judged.recipe["validate"]["gates"] = _gates()
    for what, metrics in changes.items():
        judged.recipe["task"]["further_metrics"] = metrics
        reused = _reused(judged.run("-v").output)
        assert "export" in reused, what
        assert "validate" not in reused, what


def test_another_body_of_a_further_metric_is_judged_anew(judged):
    """The file of a metric that nothing else is read from."""
    judged.recipe["validate"]["gates"] = _gates(bits={"max_metric_drop": 20})
    assert judged.run().exit_code == 0
    (judged.folder / "own.py").write_text(OWN.replace("clamp(0, 20)", "clamp(0, 20) * 0 + 7"))
    result = judged.run("-v")
    assert not _reused(result.output) & {"validate"}
    bits = _report(judged)["variants"]["sparse"]["further_metrics"]["bits"]
    assert bits["value"] == pytest.approx(7)


def test_the_range_is_tried_before_the_work(judged, frozen_stages):
    frozen_stages(validate)
    judged.recipe["task"]["further_metrics"]["bits"] = BITS | {"range": [0, 1e-9]}
    result = judged.run("--dry-run")
    assert result.exit_code == 2
    assert "task.further_metrics.bits.range must hold" in " ".join(result.output.split())
