"""Ctrl-C and SIGTERM at any moment: one line and exit code 3, never a traceback."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from mfac_compress.pipeline.signals import ignore_interrupts_of_the_command, interruptible

NUMBERS = [signal.SIGINT, signal.SIGTERM]
ENDINGS = [*NUMBERS, signal.SIGHUP, signal.SIGQUIT]
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


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.long)])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_interrupted_at_any_moment_says_so_in_one_line(project, number, times):
    """Once here: tests/faults sends these signals at any moment, too."""
    command = [sys.executable, "-m", "mfac_compress.pipeline", str(project.write_recipe())]
    command += [str(project.model), "-o", str(project.output)]
    draw = random.Random(int(number))
    for _ in range(times):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.3 + draw.uniform(0, 3))
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1].decode()
        if process.returncode == -number:
            continue  # Python itself was still starting
        assert process.returncode in (0, 3)
        assert len(stderr.splitlines()) == (1 if process.returncode else 0), stderr


@pytest.mark.parametrize("number", ENDINGS)
def test_what_is_ignored_stays_so_after_the_work(number):
    ended = _python(
        "import os\n"
        "from mfac_compress.pipeline.signals import (\n"
        "    ignore_interrupts_of_the_command, interruptible, leave_when_interrupted)\n"
        "leave_when_interrupted()\n"
        "with interruptible():\n"
        "    ignore_interrupts_of_the_command()\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "print('went on')"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\n", "")


def test_a_python_program_keeps_its_own_handlers():
    before = {number: signal.getsignal(number) for number in ENDINGS}
    ignore_interrupts_of_the_command()
    assert {number: signal.getsignal(number) for number in ENDINGS} == before
    with interruptible():
        ignore_interrupts_of_the_command()
    assert {number: signal.getsignal(number) for number in ENDINGS} == before


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)]
)
def test_a_signal_after_the_report_is_written_does_not_change_the_exit_code(project, number):
    project.recipe["prune"] = {"method": "magnitude", "sparsity": 0.5}
    project.recipe["recover"] = {"epochs": 0}
    code = textwrap.dedent(
        f"""
        import os, sys
        from mfac_compress.pipeline.run.directory import RunDirectory
        from mfac_compress.pipeline.start import main
        write = RunDirectory.write
        def write_and_send(self, name, text):
            write(self, name, text)
            if name == "report.json":
                os.kill(os.getpid(), {int(number)})
        RunDirectory.write = write_and_send
        sys.argv[1:] = [{str(project.write_recipe())!r}, {str(project.model)!r},
                        "-o", {str(project.output)!r}]
        main()
        """
    )
    ended = _python(code)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "PASS: 3 gates passed" in ended.stdout
    assert json.loads((project.output / "report.json").read_text())["verdict"] == "pass"
