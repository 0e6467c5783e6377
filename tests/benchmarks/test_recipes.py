"""The benchmark of the shipped recipes: which model each is for, and its rows."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from recipes import SHIPPED, cell, chosen, model_of, rows_of, speed_up

# The model of mam-ising is trained by `make mam`, which also runs the recipe.
WITH_MODEL = [path for path in chosen(None) if path.stem != "mam-ising"]


@pytest.mark.parametrize("recipe", WITH_MODEL, ids=lambda path: path.stem)
def test_every_recipe_has_a_model(recipe, tmp_path):
    model = model_of(recipe, tmp_path)
    named = [word for word in recipe.read_text().split() if word.endswith(".safetensors")]
    if model and model.parent == SHIPPED:
        return
    assert model is None  # nothing is in the folder
    (tmp_path / (named[0] if named else "minilm")).touch()
    assert model_of(recipe, tmp_path) is not None


def test_a_recipe_that_does_not_exist_is_named():
    with pytest.raises(SystemExit, match="Got unknown"):
        chosen(["digits", "unknown"])


def test_a_speed_up_is_the_inverse_of_the_first_ratio():
    compared = [{"ratio": {"median": 0.5, "low": 0.4, "high": 0.8}}, {"ratio": None}]
    assert speed_up(compared) == [2, 1.25, 2.5]
    assert speed_up([]) is None


def test_a_row_for_each_written_file_of_the_pruned_model():
    metric = {"value": 0.9, "interval": [0.89, 0.91], "drop": 0.01, "drop_interval": None}
    variant = {
        "file": "model.onnx",
        "written": True,
        "metric": metric,
        "sparsity": 0.8,
        "size": {"ratio": 0.25},
        "latency": [],
        "latency_int8": [],
    }
    report = {
        "verdict": "pass",
        "sparsity": {"pattern": "unstructured"},
        "variants": {
            "dense": {**variant, "file": "dense.onnx"},
            "sparse": variant,
            "sparse+kernels": {**variant, "written": False},
        },
    }
    (row,) = rows_of(report)
    assert row["file"] == "model.onnx"
    assert cell(row, "sparsity") == "80.0%, unstructured"
    assert cell(row, "metric") == "90.00 (89.00 to 91.00)"
    assert cell(row, "drop") == "1.00"
    assert cell(row, "float32") == ""
