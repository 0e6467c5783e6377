"""A file that breaks ONNX Runtime only breaks a separate process."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import psutil
import pytest

from mfac_compress.export import try_file
from mfac_compress.export.sparse import trial

X = {"x": ["n", 4]}


@pytest.fixture
def file(make_model, tmp_path):
    onnx.save(make_model([("Relu", ["x"], ["y"])], X, ["y"]), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def _feeds(*shape):
    return {"x": np.ones(shape, np.float32)}


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Replace the program of the process."""

    def be(source):
        (tmp_path / "process.py").write_text(source)
        monkeypatch.setattr(trial, "_PROCESS", tmp_path / "process.py")

    return be


def test_a_file_that_runs_is_accepted(file):
    try_file(file, [_feeds(1, 4), _feeds(3, 4)], seconds=60)


def test_inputs_of_any_name(make_model, tmp_path):
    for name in ("file", "a/b", "ä\n", "../x", "0"):
        onnx.save(make_model([("Relu", [name], ["y"])], {name: ["n", 4]}, ["y"]), tmp_path / "m")
        try_file(tmp_path / "m", [{name: np.ones((1, 4), np.float32)}], seconds=60)


def test_errors_of_onnx_runtime_are_reported(file):
    with pytest.raises(ValueError, match=r"run on inputs of shapes {'x': \[2, 5\]}.*INVALID_ARG"):
        try_file(file, [_feeds(1, 4), _feeds(2, 5)], seconds=60)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="must be able to load"):
        try_file(file, [_feeds(1, 4)], seconds=60)


def test_a_crash_is_an_error(file, process):
    process("import os; os.abort()")
    with pytest.raises(ValueError, match="crashed \\(SIGABRT\\) in the step 'start'"):
        try_file(file, [_feeds(1, 4)], seconds=60)


def test_a_process_that_does_not_end_is_ended(file, process, tmp_path):
    process(
        "import os, sys, time\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        'print(\'["load", ""]\', flush=True)\n'
        "time.sleep(100)"
    )
    with pytest.raises(ValueError, match="Loading it did not end"):
        try_file(file, [_feeds(1, 4)], seconds=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are those of Linux")
def test_more_memory_than_there_is_is_an_error(file, monkeypatch):
    class Little:
        available = 2**20

    monkeypatch.setattr(trial.psutil, "virtual_memory", Little)
    with pytest.raises(ValueError, match="must be able to load"):
        try_file(file, [_feeds(1, 4)], seconds=60)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a child with its parent")
def test_a_trial_ends_with_the_process_that_began_it():
    child = (
        f"import runpy, time; runpy.run_path({str(trial._PROCESS)!r})['_limit'](2**40); "
        "print(flush=True); time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys\n"
        f"begun = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "begun.stdout.readline()\n"
        "print(begun.pid, flush=True)\n"
        "os.abort()"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGABRT
    try:
        process = psutil.Process(int(done.stdout))
        for _ in range(100):
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.1)
        process.kill()
        pytest.fail("it goes on")
    except psutil.NoSuchProcess:
        pass
