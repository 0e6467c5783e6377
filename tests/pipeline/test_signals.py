"""Ctrl-C and SIGTERM at any moment: one line and exit code 3, never a traceback."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mfac_compress.pipeline.signals import interruptible

NUMBERS = [signal.SIGINT, signal.SIGTERM]
ONE_LINE = "error: stage start: interrupted.\n"


@pytest.fixture(autouse=True)
def not_ignored():
    """CI systems may start the tests with signals ignored, which processes pass on."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", NUMBERS)
def test_before_the_work_a_signal_ends_the_process_at_once(number):
    ended = _python(
        "import os\n"
        "from mfac_compress.pipeline.signals import leave_when_interrupted\n"
        "leave_when_interrupted()\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "finally:\n"
        "    print('never here')"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", ONE_LINE)


@pytest.mark.parametrize("number", NUMBERS)
def test_during_the_work_a_signal_is_an_exception(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_signal_that_was_ignored_from_the_start_stays_ignored():
    ended = _python(
        "import os, signal\n"
        "from mfac_compress.pipeline.signals import interruptible, leave_when_interrupted\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "leave_when_interrupted()\n"
        "with interruptible():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print('went on')"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\n", "")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_interrupted_at_any_moment_says_so_in_one_line(project, number):
    command = [sys.executable, "-m", "mfac_compress.pipeline", str(project.write_recipe())]
    command += [str(project.model), "-o", str(project.output)]
    draw = random.Random(int(number))
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.3 + draw.uniform(0, 3))
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1].decode()
        if process.returncode == -number:
            continue  # Python itself was still starting
        assert process.returncode in (0, 3)
        assert len(stderr.splitlines()) == (1 if process.returncode else 0), stderr
