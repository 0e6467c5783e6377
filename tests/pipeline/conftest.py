"""A small project as a user has it: a factory, weights, data and a recipe in one folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from mfac_compress.export import (
    Interval,
    LatencyComparison,
    Spread,
    Timing,
    finding_of,
    in_words,
    kernel_library,
)
from mfac_compress.export.sparse import choose, confirm, whole
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.stages import latency

FACTORY = """
from torch import nn

def net(width=16):
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3)
    )
"""


def _samples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated clusters in six dimensions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    centres = np.random.default_rng(0).normal(size=(3, 6)) * 3
    return (centres[y] + rng.normal(size=(n, 6))).astype(np.float32), y


def _trained_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    x, y = map(torch.from_numpy, _samples(400, seed=1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


class Project:
    """The folder, and the command line run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "net.safetensors"
        self.output = folder / "out"
        (folder / "net.py").write_text(FACTORY)
        save_file(_trained_net().state_dict(), self.model)
        for name, n, seed in [("train", 400, 1), ("test", 200, 2)]:
            x, y = _samples(n, seed)
            np.savez(folder / f"{name}.npz", x=x, y=y)
        self.recipe = {
            "model": {"factory": "net.py:net"},
            "data": {
                "source": "arrays",
                "splits": {
                    "calibration": {"path": "train.npz", "rows": [0, 200]},
                    "recovery": {"path": "train.npz", "rows": [200, 400]},
                    "validation": {"path": "test.npz"},
                },
            },
            # `gradients: auto` chooses by the clock, and so may round otherwise in a second run.
            "calibrate": {"num_gradients": 32, "samples_per_gradient": 2, "gradients": "loop"},
            "fisher": {"block_size": 16},
            "prune": {"sparsity": 0.5},
            "recover": {"epochs": 1},
            # Chosen by the clock, so that runs would write different files.
            "export": {"sparse_kernels": "off"},
            "validate": {
                "latency": None,
                "gates": {"max_metric_drop": 0.5, "min_sparsity": 0.5, "max_parity_error": 1e-3},
            },
        }

    def write_recipe(self) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe, sort_keys=False))
        return path

    def run(self, *arguments: str, model: Path | None = None, recipe: Path | None = None) -> Result:
        """``mfac-compress recipe.yaml net.safetensors -o out ...``"""
        recipe = recipe or self.write_recipe()
        command = [str(recipe), str(model or self.model), "-o", str(self.output), *arguments]
        return CliRunner().invoke(main, command)


@pytest.fixture(scope="session", autouse=True)
def _fast_exporter(fast_exporter: None) -> None:
    """For all tests here."""


WORDS = ["a", "the", "cat", "dog", "sat", "on", "mat", "ran", "red", "blue", "big", "tree", "sky"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers: a BERT of one layer for three classes, and its tokenizer."""
    transformers = pytest.importorskip("transformers", reason="the extra transformers is missing")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra transformers is missing")
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate(special + WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=3,
        initializer_range=0.5,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def module_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One that the tests of a module share."""
    return Project(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose run has passed; for looking at, not for changing."""
    project = Project(tmp_path_factory.mktemp("finished"))
    changes = ("calibrate.gradients=auto", "validate.latency={runs: 6, batch_sizes: [1, 4]}")
    result = project.run("-q", *(part for change in changes for part in ("--set", change)))
    assert result.exit_code == 0, result.output
    return project


@pytest.fixture
def frozen_stages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make stages fail if they are computed rather than found."""

    def freeze(*stages: object) -> None:
        for stage in stages:
            name = stage.__name__.rpartition(".")[2]

            def refuse(*_: object, _name: str = name, **__: object) -> None:
                raise AssertionError(f"{_name} was computed again")

            monkeypatch.setattr(stage, name, refuse)

    return freeze


@pytest.fixture
def sparse_takes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what files with sparse operators take of the dense file's time, whatever the clock says.

    First the ratio of the times by which they are chosen, then, if it is another, the interval that
    comparing the whole files gives.
    """
    try:
        kernel_library()
    except ValueError:
        pytest.skip("the sparse kernels are not built: there was no C++ compiler")

    def say(ratio: float, compared: Interval | None = None) -> None:
        def time_models(models, *_, **__):
            domains = [[node.domain for node in model.graph] for model in models]
            return [[ratio if DOMAIN in each else 1.0] * 3 for each in domains]

        def compare_latency(reference, variants, feeds, workloads, **_):
            found = compared or Interval(ratio, ratio, ratio)
            return {
                each.name: tuple(
                    _comparison(workload, found if each.library else Interval(1.0, 0.99, 1.01))
                    for workload in workloads
                )
                for each in variants
            }

        for module in (choose, whole):
            monkeypatch.setattr(module, "time_models", time_models)
        for module in (confirm, latency):
            monkeypatch.setattr(module, "compare_latency", compare_latency)

    return say


def _comparison(workload, ratio: Interval) -> LatencyComparison:
    timing = Timing(wall=Spread(1, 0), cpu=None)
    return LatencyComparison(
        reference="dense",
        workload=workload,
        rounds=20,
        runs=40,
        calls_per_run=1,
        reference_time=timing,
        time=timing,
        clock="wall",
        ratio=ratio,
        finding=finding_of(ratio),
        verdict=in_words(ratio),
    )
