"""Validation takes samples in an order of its own, and results are in the data's all the same."""

import json

from mfac_compress.pipeline.inputs.splits import Split

OWN = """
import torch

def late(outputs, targets):
    return outputs[:, 0] * targets * torch.arange(len(targets))
"""


def _value(project):
    assert project.run("-q").exit_code == 0
    return json.loads((project.output / "report.json").read_text())["variants"]["sparse"]["metric"]


def test_results_are_in_the_order_of_the_data(project, monkeypatch):
    (project.folder / "own.py").write_text(OWN)
    project.recipe["task"] = {"metric": "own.py:late"}
    project.recipe["validate"] = {"latency": None, "gates": {"min_sparsity": 0}}
    expected = _value(project)
    project.output = project.folder / "by_length"
    monkeypatch.setattr(Split, "by_length", lambda self, positions: positions.roll(7))
    found = _value(project)
    assert found["value"] == expected["value"]
    assert found["interval"] == expected["interval"]
