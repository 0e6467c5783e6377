"""The attacks are scripts beside their tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def attack():
    """Run one of the scripts, which ends with 0 if nothing was mishandled."""

    def run(script, *arguments):
        ended = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(script)), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    return run
