"""From folder, texts and recipe to a verdict: embeddings of pairs, and a classifier of pairs."""

import random

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.inputs.model_file import load_model
from mfac_compress.pipeline.recipe.schema import ModelSection
from mfac_compress.pipeline.statistics import resampling

WORDS = ["a", "the", "cat", "dog", "sat", "on", "mat", "ran", "red", "blue", "big", "tree", "sky"]
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def _texts(count, seed):
    """Rows of a text, a text and a score: of pairs that share more words it is higher."""
    draw = random.Random(seed)
    for _ in range(count):
        one = [draw.choice(WORDS) for _ in range(draw.randint(3, 9))]
        kept = draw.random()
        other = [word if draw.random() < kept else draw.choice(WORDS) for word in one]
        same = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
        yield " ".join(one), " ".join(other), same


@pytest.fixture
def run(tiny_bert, tmp_path, monkeypatch):
    """Run a recipe on the folder, and return the result and the run directory."""
    monkeypatch.setattr(resampling, "RESAMPLES", 100)
    for name, count, seed in (("train", 60, 1), ("test", 40, 2)):
        rows = [f"{a}\t{b}\t{s:.3f}\t{int(s > 0.5)}\n" for a, b, s in _texts(count, seed)]
        (tmp_path / f"{name}.tsv").write_text("".join(rows))

    def run(*arguments, data=(), **recipe):
        splits = {"calibration": {"path": "train.tsv"}, "validation": {"path": "test.tsv"}}
        recipe = {
            "data": {
                "source": "text",
                "text": [0, 1],
                "splits": splits,
                "max_overlap": 40,
                **dict(data),
            },
            "calibrate": {
                "labels": "model",
                "num_gradients": 16,
                "samples_per_gradient": 2,
                "gradients": "loop",
            },
            "fisher": {"block_size": 16},
            "export": {"sparse_kernels": "off"},
            **recipe,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        command = [str(path), str(tiny_bert), "-o", str(tmp_path / "out"), *arguments]
        return CliRunner().invoke(main, command), tmp_path / "out"

    return run


def _session(path):
    session = onnxruntime.InferenceSession(path)
    for value in session.get_inputs():
        assert value.shape == ["batch", "length"]
    return session


def _pruned(folder, task, out):
    module = load_model(folder, ModelSection(task=task), folder=folder).module
    module.load_state_dict(load_file(out / "model.safetensors"))
    return module


EMBEDDING = {
    "model": {"task": "embedding"},
    "data": {"label": 2, "label_type": "score", "pairs": "apart"},
    "task": {"loss": "none", "metric": "spearman_cosine"},
}


def test_an_encoder_of_sentences_is_judged_by_its_pairs(run, tiny_bert):
    result, out = run(
        "-q",
        **EMBEDDING,
        prune={"sparsity": 0.4, "method": "mfac"},
        validate={
            "latency": None,
            "batch_size": 16,
            "gates": {
                "confidence": "none",
                "min_metric": 0.3,
                "max_parity_error": 1e-4,
                "min_sparsity": 0.4,
            },
        },
    )
    assert result.exit_code == 0, result.output
    report = yaml.safe_load((out / "report.json").read_text())
    assert report["metric"]["samples"] == 40
    assert report["metric"]["name"] == "spearman_cosine"
    # The file takes one text a row, of another number and length than any before.
    ids, mask = np.full((3, 17), 5), np.tri(3, 17, 8, dtype=np.int64)
    session = _session(out / "model.onnx")
    assert [value.name for value in session.get_inputs()] == INPUTS[:2]
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    module = _pruned(tiny_bert, "embedding", out)
    with torch.no_grad():
        expected = module(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    assert np.allclose(found, expected, atol=1e-5)


def test_a_dry_run_of_a_classifier_says_what_is_left_out(run):
    result, out = run(
        "--dry-run",
        model={"task": "sequence-classification"},
        data={"label": 3, "inputs": INPUTS},
        calibrate={"num_gradients": 16, "samples_per_gradient": 2, "gradients": "loop"},
        prune={"sparsity": 0.4},
        validate={"latency": None},
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "bert.encoder.layer.0.output.dense.weight" in said
    assert "classifier.weight of the head, which only a pattern of its own" in said
    assert "word_embeddings.weight not a linear or convolution weight (Embedding)" in said
    assert not out.exists()


REFUSED = {
    "labels of an embedding": ("calibrate.labels=true", "calibrate.labels must be model"),
    "training of an embedding": ("recover.epochs=1", "recover.distill must be given"),
    "pairs in one": ("data.pairs=together", "data.pairs must be apart"),
    "a fixed length": ("export.dynamic_axes={}", "must name axis 1 of input_ids"),
    "longer than the model": ("data.max_length=64", "it raised"),
    "no task": ("model.task=null", "model.task must be given"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_the_work(run, tmp_path, case):
    change, message = REFUSED[case]
    with (tmp_path / "test.tsv").open("a") as file:
        file.write(f"{'cat ' * 40}\tcat\t0.5\t1\n")
    arguments = ("--dry-run", "--set", change)
    result, out = run(*arguments, **EMBEDDING, prune={"sparsity": 0.4}, validate={"latency": None})
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not out.exists()
