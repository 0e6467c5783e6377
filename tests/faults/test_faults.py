"""Runs that are killed go on where they were, to the same end: the short form of ``run.py``."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="this system does not show a process's children"
)


def _kill(*arguments):
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_few_kills():
    _kill("--kills", "4", "--seed", "1")


@pytest.mark.long
def test_many_kills():
    _kill("--kills", "100", "--seed", "100")
