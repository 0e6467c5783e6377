"""The attacks are scripts beside their tests."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def load_script(fast_exporter, monkeypatch, tmp_path):
    """Load one of the scripts, of which each case is a run in this process."""
    monkeypatch.chdir(tmp_path)

    def load(name):
        path = Path(__file__).with_name(name)
        spec = importlib.util.spec_from_file_location(f"attack_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


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
