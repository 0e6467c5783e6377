"""Hostile data is refused, or loaded as what it is; `data.py` beside this makes more of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _attack(*arguments):
    command = [sys.executable, str(Path(__file__).with_name("data.py")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_part_of_the_kinds():
    _attack("--count", "580", "--step", "11")


@pytest.mark.long
def test_all_kinds_and_damage_at_random():
    _attack("--count", "1000", "--seed", "1")
