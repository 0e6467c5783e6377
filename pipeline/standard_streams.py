"""The process' standard streams: that they are there, and that stdout is kept for programs."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_STDOUT, _STDERR = 1, 2


def open_missing_streams() -> None:
    """Connect standard streams that are closed with nothing.

    Otherwise the next file that is opened takes a closed stream's number, and libraries that print
    would print into it.
    """
    for number in (0, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Send to stderr what is printed in here, whether from Python, from C or by other programs."""
    with redirect_stdout(sys.stderr):
        sys.__stdout__ and sys.__stdout__.flush()
        kept = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
        try:
            yield
        finally:
            if os.name == "posix":
                ctypes.CDLL(None).fflush(None)  # what C has not written yet must not come later
            os.dup2(kept, _STDOUT)
            os.close(kept)
