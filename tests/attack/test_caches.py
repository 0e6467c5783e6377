"""Damaged caches change nothing: the short form of ``caches.py``."""

import subprocess
import sys
from pathlib import Path

import pytest


def _attack(*arguments):
    command = [sys.executable, str(Path(__file__).with_name("caches.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_damage_of_either_cache_once():
    _attack("--count", "24")


@pytest.mark.long
def test_many_damages():
    _attack("--count", "200", "--seed", "24")
