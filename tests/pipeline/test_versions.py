"""The versions in the keys are those of all libraries that results depend on."""

import configparser
import re
from pathlib import Path

import pytest

from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.versions import library_versions, recipe_hash

RECIPE = {
    "data": {
        "source": "arrays",
        "splits": {"calibration": {"path": "a.npz"}, "validation": {"path": "b.npz"}},
    },
    "task": {"metric": "own.py:score", "range": [0, 1]},
    "prune": {"sparsity": 0.5},
    "recover": {"epochs": 0},
}

NO_PART_OF_RESULTS = {
    "click",
    "click-default-group",
    "filelock",
    "psutil",
    "pydantic",
    "pyyaml",
    "rich",
}

# What is judged, and how, is not in the files: a changed metric must not export them anew.
HOW_IT_IS_JUDGED = {
    "metric": {"task": {"metric": "own.py:other", "range": [0, 1]}},
    "range": {"task": {"metric": "own.py:score", "range": [0, 100]}},
    "direction": {"task": {"metric": "own.py:score", "direction": "minimize"}},
    "validation data": {
        "data": {
            "source": "arrays",
            "max_overlap": 3,
            "splits": {"calibration": {"path": "a.npz"}, "validation": {"path": "c.npz"}},
        }
    },
    "further metrics": {
        "task": {
            "metric": "own.py:score",
            "range": [0, 1],
            "further_metrics": {"error": {"metric": "own.py:error"}},
        }
    },
    "gates": {"validate": {"gates": {"min_sparsity": 0.4}}},
}
WHAT_IS_MADE = {
    "loss": {"task": {"loss": "mse", "metric": "own.py:score"}},
    "sparsity": {"prune": {"sparsity": 0.6}},
    "calibration data": {
        "data": {
            "source": "arrays",
            "splits": {"calibration": {"path": "c.npz"}, "validation": {"path": "b.npz"}},
        }
    },
    "opset": {"export": {"opset": 19}},
}


def _hash(changes):
    return recipe_hash(Recipe.model_validate(RECIPE | changes))


@pytest.mark.parametrize("what", HOW_IT_IS_JUDGED)
def test_a_recipes_hash_is_not_of_how_it_is_judged(what):
    assert _hash(HOW_IT_IS_JUDGED[what]) == _hash({})


@pytest.mark.parametrize("what", WHAT_IS_MADE)
def test_a_recipes_hash_is_of_what_is_made(what):
    assert _hash(WHAT_IS_MADE[what]) != _hash({})


def test_every_requirement_is_in_the_keys_or_takes_no_part_in_results():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    required = {re.match(r"[\w-]+", line).group() for line in lines}
    assert {*library_versions()} - {"python"} == required - NO_PART_OF_RESULTS
