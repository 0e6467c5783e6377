"""Damaged caches change nothing: the short form of ``caches.py``."""

import subprocess
import sys
from pathlib import Path

import pytest


def _attack(*arguments):
    command = [sys.executable, str(Path(__file__).with_name("caches.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_part_of_the_damages():
    _attack("--count", "10")


@pytest.mark.long
def test_many_damages():
    _attack("--count", "200")
