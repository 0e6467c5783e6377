"""Hostile recipes of SparseML in their short form, and in their long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _attack(*arguments):
    script = Path(__file__).with_name("foreign_recipes.py")
    ended = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_hostile_recipes_of_sparseml_execute_nothing():
    _attack("--count", "150", "--seed", "1")


@pytest.mark.long
def test_many_hostile_recipes_of_sparseml_execute_nothing():
    _attack("--count", "5000", "--seed", "2")
