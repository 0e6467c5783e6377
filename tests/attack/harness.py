"""What the attacks share: a case in a process of its own, and many of them in turn."""

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

_FAULT = 70
"""Exit code of a process in which an exception got out."""
_BUSY = 4


@dataclass(frozen=True)
class Ended:
    """How a case's process ended.

    Args:
        code: Its exit code; negative for the number of a signal.
        said: What it printed.
        excess: Words for what it took too much of; empty if nothing.
    """

    code: int
    said: str
    excess: str


def in_process(work: Callable[[], int], log: Path, *, seconds: float, most_bytes: float) -> Ended:
    """Do something in a forked process, and end that with the exit code it returns.

    Args:
        work: Calls :func:`write_to` itself, where what it prints is to be looked at.
        log: The file that it hands to :func:`write_to`.
        seconds: That it may compute. On a busy machine it may last a few times as long before it is
            killed.
        most_bytes: Of memory.
    """
    child = os.fork()
    if child == 0:
        code = _FAULT
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status, usage = _wait(child, _BUSY * seconds)
    killed, took, excess = status == signal.SIGKILL, usage.ru_utime + usage.ru_stime, ""
    if killed or took > seconds:
        excess = f"took {took:.0f} s of computing{', and did not end' if killed else ''}"
    elif usage.ru_maxrss * 1024 > most_bytes:
        excess = f"took {usage.ru_maxrss / 1e6:.1f} GB"
    said = log.read_text(errors="replace") if log.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), said, excess)


def write_to(log: Path) -> None:
    """From here on, let this process print into a file."""
    with log.open("w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)


def _wait(child: int, seconds: float) -> tuple[int, resource.struct_rusage]:
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def attack(
    doc: str,
    cases: Callable[[int], Iterator[Any]],
    outcome: Callable[[Any, Path], tuple[str, str]],
    *,
    count: int = 400,
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Try the cases that the command line asks for; returns 1 where one was mishandled.

    Args:
        doc: The script's docstring.
        cases: All cases of a seed. Each has a ``name``.
        outcome: Of a case, in an empty folder: what came of it, and what was wrong with that.
        count: How many cases without ``--count``.
        prepare: Done once, before the processes part.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", type=int, default=1, help="take only every STEP-th of the COUNT")
    parser.add_argument("--only", default="", help="part of the names of those to run")
    options = parser.parse_args()
    prepare()
    tried: dict[str, int] = {}
    mishandled = 0
    root = Path(tempfile.mkdtemp(prefix="mfac-attack-"))
    for number, case in enumerate(islice(cases(options.seed), 0, options.count, options.step)):
        if options.only not in case.name:
            continue
        folder = root / str(number)
        folder.mkdir()
        found, wrong = outcome(case, folder)
        tried[found] = tried.get(found, 0) + 1
        if wrong:
            mishandled += 1
            print(f"{case.name}: {wrong}", flush=True)
        elif options.only:
            print(f"{case.name}: {found}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)
    counts = ", ".join(f"{count} {what}" for what, count in tried.items() if len(what) < 10)
    print(f"{sum(tried.values())} tried: {counts}; {mishandled} mishandled")
    return 1 if mishandled else 0


def expected(found: str, case: Any) -> tuple[str, str]:
    """An outcome, and what is wrong with it: whether it is among those ``case.expected``."""
    wrong = "" if found in case.expected else f"{found}, and was to be {' or '.join(case.expected)}"
    return found, wrong
