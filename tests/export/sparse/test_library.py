"""The library is found, or the error says what to install."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from mfac_compress.export import kernel_library
from mfac_compress.export.sparse import library

ROOT = Path(__file__).parents[3]


def test_any_onnx_runtime_loads_it():
    onnxruntime.SessionOptions().register_custom_ops_library(str(kernel_library()))


def test_without_it_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", "not_built.so")
    with pytest.raises(ValueError, match=r"not_built\.so.*compiler.*pip install"):
        kernel_library()


def test_without_a_compiler_the_build_goes_on(tmp_path):
    environment = os.environ | {"CXX": "no-such-compiler", "CC": "no-such-compiler"}
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "-b", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.rglob("format.py"))
    assert not list(tmp_path.rglob("*.so"))
