"""Standard streams that are closed, full, narrow or know few letters; stdout kept for programs."""

import json
import os
import subprocess
import sys

import pytest

PRINTS = (
    "import ctypes, os, subprocess, sys\n"
    "from mfac_compress.pipeline.standard_streams import stdout_kept\n"
    "print('before')\n"
    "with stdout_kept():\n"
    "    print('Python')\n"
    "    ctypes.CDLL(None).puts(b'C')\n"
    "    os.write(1, b'system\\n')\n"
    "    subprocess.run(['echo', 'program'])\n"
    "print('after')"
)


def test_what_anything_prints_goes_to_stderr_while_stdout_is_kept():
    ended = subprocess.run(
        [sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "before\nafter\n"
    assert set(ended.stderr.split()) == {"Python", "C", "system", "program"}


@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [
        ("schema", ">&-", 0),
        ("schema", "<&-", 0),
        ("schema", "<&- >&- 2>&-", 0),
        ("none.yaml none.pt", "2>&-", 2),
        ("none.yaml none.pt", "<&- >&- 2>&-", 2),
    ],
)
def test_a_closed_stream_takes_nothing_and_harms_nothing(command, closed, code, tmp_path):
    line = f"'{sys.executable}' -m mfac_compress.pipeline {command} {closed}"
    assert subprocess.run(line, shell=True, check=False, cwd=tmp_path).returncode == code


def test_a_run_ends_the_same_on_any_terminal(project):
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb", "COLUMNS": "20"}
    project.recipe["model"]["kwargs"] = {"width": 16}
    named = project.folder / "grün.yaml"
    project.write_recipe().rename(named)
    command = [sys.executable, "-m", "mfac_compress.pipeline", str(named), str(project.model)]
    command += ["-o", str(project.folder / "aus\u00dfen"), "--json"]
    ended = subprocess.run(
        command, capture_output=True, env={**os.environ, **environment}, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.decode("ascii"))["verdict"] == "pass"
