"""However a process ends, its exit code is one of the contract's."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system cannot wait for signals"
)


PROGRAM = """
import ctypes, os, signal, sys, time
from mfac_compress.pipeline.supervise import supervised
signal.signal(signal.SIGTERM, signal.default_int_handler)
signal.signal(signal.SIGINT, signal.default_int_handler)
def command():
{body}
supervised(command)
"""


def _start(body):
    program = PROGRAM.format(body=textwrap.indent(body, "    "))
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(1)", 1),
        ("sys.exit(2)", 2),
        ("pass", 0),
        ("sys.exit('x')", 1),
        ("sys.exit(256)", 3),  # whose last byte is that of "all gates pass"
    ],
)
def test_the_code_that_the_command_gives_is_passed_on(body, code):
    process = _start(body)
    _, said = process.communicate()
    assert process.returncode == code
    assert "verdict" not in said


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("os._exit(0)", "ended with code 0"),
        ("os.abort()", "signal SIGABRT"),
        ("os.kill(os.getpid(), 9)", "signal SIGKILL"),
        ("ctypes.string_at(0)", "signal SIGSEGV"),
    ],
)
def test_an_end_without_a_code_is_a_failure(body, how):
    process = _start(body)
    _, said = process.communicate()
    assert process.returncode == 3
    assert how in said


def test_what_a_command_leaves_behind_is_not_waited_for():
    process = _start("if os.fork() == 0: time.sleep(9)\nsys.exit(1)")
    assert process.wait(timeout=30) == 1


def test_the_code_of_a_copy_of_the_command_is_not_taken_for_its_own():
    process = _start(
        "copy = os.fork()\nif copy == 0: sys.exit(0)\nos.waitpid(copy, 0)\nsys.exit(1)"
    )
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_a_thread_that_never_ends_does_not_hold_up_the_code():
    program = "import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    program += "import mfac_compress.pipeline.supervise as own\nown._SECONDS_TO_END = 1\n"
    process = _start(program + "print('said')\nsys.exit(1)")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == "said\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command(sent):
    waits = "try: print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(3)"
    process = _start(waits)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    assert process.wait(timeout=30) == 3


def test_the_command_ends_with_a_parent_that_is_killed():
    process = _start("print(os.getpid(), flush=True); time.sleep(60)")
    child = Path("/proc", process.stdout.readline().strip(), "stat")
    process.kill()
    process.wait()
    for _ in range(100):
        if not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] in "ZX":
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")
