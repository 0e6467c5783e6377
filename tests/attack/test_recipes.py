"""Hostile recipes and command lines in their short form, and in their long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _attack(*arguments):
    script = Path(__file__).with_name("recipes.py")
    ended = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_hostile_recipes_are_refused_or_accepted():
    _attack("--count", "60", "--seed", "1")


@pytest.mark.long
def test_many_hostile_recipes_are_refused_or_accepted():
    _attack("--count", "1500", "--seed", "2")
