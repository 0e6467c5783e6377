"""The benchmark of whole models: published sizes, and rows for every file that was asked for."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from networks import Bert, bert_base, mobilenetv2, resnet50, vit_small
from sparse_files import PATTERNS
from whole_models import Network, measure

# Torchvision 0.15 (ResNet-50, MobileNetV2), transformers 4.30 (BertModel), timm 0.9 (ViT-S/16).
PUBLISHED = {
    resnet50: 25_557_032,
    mobilenetv2: 3_504_872,
    bert_base: 109_482_240,
    vit_small: 22_050_664,
}


@pytest.mark.parametrize("build", PUBLISHED, ids=lambda build: build.__name__)
def test_a_network_has_the_published_number_of_parameters(build):
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[build]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_removes_the_share_of_blocks(pattern):
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 48)
    PATTERNS[pattern](torch.nn.Sequential(layer), 0.75)
    weight = layer.weight.detach()
    assert (weight == 0).float().mean() == 0.75
    blocks = {"outputs-4": weight.T.reshape(-1, 4), "inputs-4": weight.reshape(-1, 4)}
    removed = (blocks.get(pattern, weight.reshape(-1, 1)) == 0).float().mean(1)
    assert set(removed.tolist()) == {0.0, 1.0}


def test_every_file_that_is_asked_for_has_a_row():
    tiny = Network(lambda: Bert(1, 32, 2, vocabulary=16), (8,), vocabulary=16)
    cases = [(0.5, "unstructured"), (0.75, "outputs-4")]
    rows = measure("tiny", tiny, cases, ["float32", "int8"], threads=1, rounds=6)
    found = [(row["model"], row["sparsity"], row["pattern"], row["precision"]) for row in rows]
    assert found == [
        ("tiny", 0.0, "dense", "int8"),
        *(("tiny", *case, precision) for case in cases for precision in ("float32", "int8")),
    ]
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows)
