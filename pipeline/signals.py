"""What Ctrl-C and SIGTERM do: SIGTERM is how CI systems cancel jobs, and both must end tidily.

Before the work begins there is nothing to tidy up, and modules that are half imported cannot: an
exception in them prints a traceback, or is lost. So the process then ends on the spot. During the
work both are KeyboardInterrupt. After it they are ignored, for the moment that Python takes to end.
A process that was started with a signal ignored, as by ``nohup``, goes on ignoring it.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_EXIT_CODE = 3


def leave_when_interrupted() -> None:
    """From here on, end the process with one line and exit code 3 when it is interrupted."""
    _handle(_leave)


def ignore_interrupts() -> None:
    """From here on, do not let a signal interrupt what little is left to do."""
    _handle(signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt, in here, for Ctrl-C and SIGTERM alike."""
    before = {number: signal.getsignal(number) for number in _INTERRUPTS}
    try:
        _handle(signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Any) -> None:
    for number in _INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"error: stage start: interrupted.\n")
    os._exit(_EXIT_CODE)
