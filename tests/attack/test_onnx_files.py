"""Hostile ONNX files end in an answer; `onnx_files.py` beside this makes more of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfac_compress.export import kernel_library


def _attack(*arguments):
    try:
        kernel_library()
    except ValueError:
        pytest.skip("the sparse kernels are not built: there was no C++ compiler")
    command = [sys.executable, str(Path(__file__).with_name("onnx_files.py")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_part_of_the_kinds_and_of_the_damage():
    _attack("--count", "360", "--step", "20")


@pytest.mark.long
def test_all_kinds_and_damage_at_random():
    _attack("--count", "900", "--seed", "1")
