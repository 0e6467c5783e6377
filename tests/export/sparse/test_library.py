"""The library is found, or the error says what to install."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from mfac_compress.export import kernel_library
from mfac_compress.export.sparse import library

ROOT = Path(__file__).parents[3]
OLDER_COMPILER = """#!/bin/sh
case "$*" in *-mavxvnni*) exit 1 ;; esac
while [ "$1" != -o ]; do shift; done
touch "$2"
"""


def test_any_onnx_runtime_loads_it():
    onnxruntime.SessionOptions().register_custom_ops_library(str(kernel_library()))


def test_without_it_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", "not_built.so")
    with pytest.raises(ValueError, match=r"not_built\.so.*compiler.*pip install"):
        kernel_library()


def _build(compiler, folder):
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "-b", str(folder)],
        cwd=ROOT, env=os.environ | {"CXX": compiler, "CC": compiler},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert list(folder.rglob("format.py"))
    return result.stderr


def test_without_a_compiler_the_build_goes_on(tmp_path):
    _build("no-such-compiler", tmp_path)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86")
def test_an_older_compiler_builds_the_rest(tmp_path):
    """One that refuses -mavxvnni, and writes empty files."""
    compiler = tmp_path / "older-compiler"
    compiler.write_text(OLDER_COMPILER, encoding="utf-8")
    compiler.chmod(0o755)
    said = _build(str(compiler), tmp_path / "build")
    assert "simd_avxvnni.cpp: the compiler does not support -mavxvnni" in said
    assert list(tmp_path.rglob("libmfac_sparse.so"))
