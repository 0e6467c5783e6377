"""The sweep over public architectures: what it makes of a model, and of a command that failed.

The collections are optional extras: networks of a few weights stand for theirs here.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import zoo
from architectures import Ended, Result, failure, recipe_of, run_apart
from zoo import ARCHITECTURES, Architecture

from mfac_compress.pipeline.recipe.schema import Recipe


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What becomes of the models of own_architectures.py, by name."""
    script = Path(__file__).with_name("own_architectures.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("sweep"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    found = (Result(**row) for row in json.loads(ended.stdout.splitlines()[-1]))
    return {result.name: result for result in found}


def test_a_model_of_which_little_can_be_pruned_passes_since_its_verdict_says_so(results):
    result = results["small"]
    assert (result.outcome, result.parameters, result.prunable) == ("passed", 240, 0.125)
    assert "(only 12.5% of the model)" in result.said


def test_a_model_that_cannot_be_exported_is_refused_with_the_reason(results):
    result = results["branching"]
    assert result.outcome == "refused"
    assert result.said.startswith("error: export: The model must be exportable to ONNX")


def test_a_model_that_its_collection_cannot_make_says_nothing_of_the_command(results):
    result = results["unknown"]
    assert (result.outcome, result.said) == ("not built", "ValueError: no such model")


@pytest.mark.parametrize(
    ("code", "text", "of_dry_run", "of_run"),
    [
        (2, "error: the model must", "refused", "failed late"),
        (3, "error: stage export: killed", "traceback", "failed late"),
        (3, "Traceback (most recent call last):\nKeyError: 1", "traceback", "traceback"),
        (None, "exporting", "timed out", "timed out"),
    ],
)
def test_how_a_command_failed(code, text, of_dry_run, of_run):
    ended = Ended(code, text)
    assert (failure(ended, "refused"), failure(ended, "failed late")) == (of_dry_run, of_run)


def test_the_line_of_the_verdict_is_put_together_from_where_it_was_wrapped():
    text = (
        "results: runs/a\nwarning: PASS\nPASS: 1 gate passed; zeros: 50.0% of\nmatched, 3% of all"
    )
    assert Ended(0, text).verdict == "PASS: 1 gate passed; zeros: 50.0% of matched, 3% of all"


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    start = time.monotonic()
    assert run_apart(lambda: time.sleep(60), tmp_path, timeout=0.5) == Ended(None, "")
    assert time.monotonic() - start < 30


def test_every_architecture_has_a_recipe():
    assert len(ARCHITECTURES) == len(zoo._LISTED) >= 100
    for name, architecture in ARCHITECTURES.items():
        Recipe.model_validate(recipe_of(name, architecture))


def test_samples_are_the_same_each_time():
    first, again = (zoo.splits("transformers/bert")["calibration"] for _ in range(2))
    (tokens, _), (repeated, _) = first[3], again[3]
    assert torch.equal(tokens["input_ids"], repeated["input_ids"])
    assert not torch.equal(tokens["input_ids"], first[4][0]["input_ids"])


def test_constant_weights_are_drawn_and_statistics_estimated():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.zeros_(module[0].weight)
    zoo._draw_constants(module)
    assert module[0].weight.std() > 0
    zoo._estimate_statistics(module, Architecture("timm", "own", (3, 8, 8)))
    assert (module[1].running_mean != 0).all()
    assert module[1].momentum == 0.1
