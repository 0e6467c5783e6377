"""What Ctrl-C and SIGTERM do: SIGTERM is how CI systems cancel jobs, and both must end tidily.

Before the work begins there is nothing to tidy up, and modules that are half imported cannot: an
exception in them prints a traceback, or is lost. So the process then ends on the spot. During the
work both are KeyboardInterrupt. From the moment at which the report is written all that could end
the process are ignored: the verdict stands, and a signal must not give another exit code beside it.
A process that was started with a signal ignored, as by ``nohup``, goes on ignoring it.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_ENDINGS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
)
_EXIT_CODE = 3
_interruptible: list[None] = []


def leave_when_interrupted() -> None:
    """From here on, end the process with one line and exit code 3 when it is interrupted."""
    _handle(_leave)


def ignore_interrupts() -> None:
    """From here on, do not let a signal interrupt what little is left to do."""
    _handle(signal.SIG_IGN, _ENDINGS)


def ignore_interrupts_of_the_command() -> None:
    """Ignore them within :func:`interruptible`; who runs this from Python keeps their handlers."""
    if _interruptible:
        ignore_interrupts()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt, in here, for Ctrl-C and SIGTERM alike.

    Signals that are ignored by the end stay so in a process that is the command's own.
    """
    before = {number: signal.getsignal(number) for number in _ENDINGS}
    own = any(handler is _leave for handler in before.values())
    _interruptible.append(None)
    try:
        _handle(signal.default_int_handler)
        yield
    finally:
        _interruptible.pop()
        for number, handler in before.items():
            if not (own and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, handler)


def _handle(handler: Any, numbers: Sequence[signal.Signals] = _INTERRUPTS) -> None:
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"error: stage start: interrupted.\n")
    os._exit(_EXIT_CODE)
