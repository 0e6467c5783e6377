"""A text classifier: its inputs are token numbers, from the .npz to ONNX Runtime."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import save_file

FACTORY = """
from torch import nn

class Bag(nn.Module):
    def __init__(self, tokens=40):
        super().__init__()
        self.words = nn.EmbeddingBag(tokens, 8)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x):
        return self.head(self.words(x))

class Lstm(nn.Module):
    def __init__(self, tokens=40):
        super().__init__()
        self.words = nn.Embedding(tokens, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(self.words(x))[0][:, -1])
"""


def _texts(n, seed):
    """Texts of 10 tokens; those of class 1 have more of the tokens from 20 on."""
    draw = np.random.default_rng(seed)
    y = draw.integers(2, size=n)
    late = draw.random((n, 10)) < 0.2 + 0.6 * y[:, None]
    return draw.integers(0, 20, (n, 10)) + 20 * late, y


@pytest.fixture
def texts(project):
    (project.folder / "net.py").write_text(FACTORY)
    for name, n, seed in (("train", 400, 1), ("test", 200, 2)):
        x, y = _texts(n, seed)
        np.savez(project.folder / f"{name}.npz", x=x, y=y)
    return project


def _use(project, name):
    names = {}
    exec(FACTORY, names)
    torch.manual_seed(0)
    save_file(names[name]().state_dict(), project.model)
    project.recipe["model"]["factory"] = f"net.py:{name}"


@pytest.mark.parametrize("name", ["Bag", "Lstm"])
def test_a_text_classifier_runs_from_an_npz(name, texts):
    _use(texts, name)
    latency = "validate.latency={runs: 6, batch_sizes: [1, 3]}"
    result = texts.run("--set", latency, "--set", "validate.gates.min_sparsity=0")
    assert result.exit_code == 0, result.output
    exported = onnx.load(texts.output / "model.onnx")
    assert exported.graph.input[0].type.tensor_type.elem_type == TensorProto.INT64
    report = json.loads((texts.output / "report.json").read_text())
    assert report["variants"]["sparse"]["parity_error"] < 1e-4


def test_a_token_that_the_model_does_not_have_is_found_before_the_work(texts):
    _use(texts, "Bag")
    x, y = _texts(200, 2)
    x[150, 3] = 40
    np.savez(texts.folder / "test.npz", x=x, y=y)
    result = texts.run("--dry-run")
    assert result.exit_code == 2
    assert "For int64 [4, 10] it raised" in " ".join(result.output.split())


def test_floats_for_a_model_of_tokens(texts):
    _use(texts, "Bag")
    result = texts.run("--dry-run", "--set", "data.dtype=float32")
    assert result.exit_code == 2
    assert "set data.dtype to int64" in " ".join(result.output.split())


def test_tokens_are_not_augmented(texts):
    _use(texts, "Bag")
    result = texts.run("--set", "data.dtype=int64", "--set", "data.augment={flip: true}")
    assert result.exit_code == 2
    assert "data.dtype" in result.output


def test_latency_is_measured_at_each_length_of_an_open_axis(texts):
    _use(texts, "Lstm")
    texts.recipe["export"] |= {"dynamic_axes": {"input": {1: "sequence"}}}
    latency = {"runs": 6, "batch_sizes": [2], "lengths": {"sequence": [4, 25]}}
    texts.recipe["validate"] |= {"latency": latency, "gates": {"max_parity_error": 1e-3}}
    result = texts.run()
    assert result.exit_code == 0, result.output
    exported = onnx.load(texts.output / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [axis.dim_param for axis in exported.dim] == ["batch", "sequence"]
    report = json.loads((texts.output / "report.json").read_text())
    workloads = [one["workload"] for one in report["variants"]["sparse"]["latency"]]
    assert [one["lengths"] for one in workloads] == [{"sequence": 4}, {"sequence": 25}]
    assert "sequence 25, 1 thread" in result.output
