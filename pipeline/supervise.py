"""Run a command in a child process, so that its exit code is always one of the contract's.

Code of the user's, or native code, can end a process in ways that no exception shows:
``os._exit(0)`` would read as "all gates pass". So the child hands its exit code to its parent
through a pipe, as the last thing it does, and the parent believes nothing else.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

_FAILED = 3
_SECONDS_TO_END = 10
"""In which a process that has given its code must end."""
_KERNEL = 0x80  # si_code of a signal that the terminal sends to all processes of its job
_SET_PDEATHSIG = 1
_FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


def supervised(command: Callable[[], None]) -> NoReturn:
    """Run a command that ends by ``sys.exit``, and end with the code that it gave.

    Where the system has no signals to wait for (others than Linux), and below torchrun, which has
    a supervisor of its own, the command runs in this process.

    Args:
        command: Ends by SystemExit.
    """
    if not hasattr(signal, "sigwaitinfo") or "TORCHELASTIC_RUN_ID" in os.environ:
        command()
        sys.exit(0)
    watched = _FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _report_code(command, writer)
    os.close(writer)
    interrupted = _forward_until_ended(child, watched)
    _, status = os.waitpid(child, 0)
    os.set_blocking(reader, False)
    if interrupted and os.waitstatus_to_exitcode(status) == _FAILED:
        sys.exit(_FAILED)  # it has said so itself, also where it left before it could give a code
    sys.exit(_code(reader, status))


def _report_code(command: Callable[[], None], writer: int) -> NoReturn:
    """Run the command, in the child; its code goes to the parent before it ends.

    The user's code may fork: a copy of the child that comes to its end here gives no code, which
    the parent would take for the child's own.
    """
    own, code = os.getpid(), 0
    try:
        command()
    except SystemExit as end:
        code = end.code
    number = code if isinstance(code, int) else int(code is not None)
    if os.getpid() != own:
        os._exit(_FAILED)
    os.write(writer, bytes([number if 0 <= number <= 0xFF else _FAILED]))
    _end_soon()
    sys.exit(code)


def _end_soon() -> None:
    """Let the kernel end this process if Python cannot: it waits for threads of the user's code."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            stream.flush()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.alarm(_SECONDS_TO_END)


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, which could not pass on a SIGKILL."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_FAILED)


def _forward_until_ended(child: int, watched: set[signal.Signals]) -> bool:
    """Pass signals on to the child, but for those that the terminal has sent to it as well.

    Returns:
        Whether there were any.
    """
    interrupted = False
    while True:
        arrived = signal.sigwaitinfo(watched)
        if arrived.si_signo == signal.SIGCHLD:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                return interrupted
            continue
        interrupted = True
        if arrived.si_code != _KERNEL:
            os.kill(child, arrived.si_signo)


def _code(reader: int, status: int) -> int:
    """The code that the child gave; if it gave none, that of a failure, with a message."""
    try:
        given = os.read(reader, 1)
    except BlockingIOError:  # a process that the child has left behind still holds the pipe
        given = b""
    if given:
        return given[0]
    how = (
        f"was ended by signal {signal.Signals(os.WTERMSIG(status)).name}"
        if os.WIFSIGNALED(status)
        else f"ended with code {os.waitstatus_to_exitcode(status)}"
    )
    print(
        f"error: a run must end with a verdict or an error. The process {how}, without either: "
        "memory that ran out, a crash in native code, or os._exit in your own code. "
        "Results are not there.",
        file=sys.stderr,
    )
    return _FAILED
