"""A program of torch.export that takes named inputs, from recipe to a passing gate."""

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from mfac_compress.pipeline.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        x = self.hidden(self.embedding(input_ids)).relu() * attention_mask[..., None]
        return {"logits": self.head(x.mean(1)), "hidden": [x]}


def test_a_program_that_was_exported_by_position_takes_named_inputs(tmp_path):
    torch.manual_seed(0)
    net, shape = Tokens().eval(), {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    ids, mask = torch.randint(10, (120, 7)), torch.ones(120, 7).long().tril(5)
    example = {"input_ids": ids[:2], "attention_mask": mask[:2]}
    program = torch.export.export(net, tuple(example.values()), dynamic_shapes=(shape, shape))
    torch.export.save(program, tmp_path / "net.pt2")
    labels = net(ids, mask)["logits"].argmax(1)
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=mask, labels=labels)
    rows = {"calibration": [0, 60], "validation": [60, 120]}
    recipe = {
        "model": {"output": "logits"},
        "data": {
            "source": "arrays",
            "x": list(example),
            "y": "labels",
            "splits": {name: {"path": "data.npz", "rows": each} for name, each in rows.items()},
        },
        "calibrate": {"num_gradients": 16, "samples_per_gradient": 2, "labels": "model"},
        "fisher": {"block_size": 16},
        "prune": {"sparsity": 0.3},
        "export": {
            "sparse_kernels": "off",
            "dynamic_axes": {name: {1: "length"} for name in example},
        },
        "validate": {
            "batch_size": 16,
            "latency": None,
            "gates": {"max_metric_drop": 0.6, "max_parity_error": 1e-4},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [tmp_path / "recipe.yaml", tmp_path / "net.pt2", "-o", tmp_path / "out", "-q"]

    result = CliRunner().invoke(main, [str(part) for part in command])

    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [one.name for one in session.get_inputs()] == list(example)
    assert all(one.shape == ["batch", "length"] for one in session.get_inputs())
    assert [one.shape for one in session.get_outputs()] == [["batch", 3]]
