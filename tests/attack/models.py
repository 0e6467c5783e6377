"""Hostile model files, which must be refused, or loaded as what they are.

``python tests/attack/models.py --count 400 --seed 1`` makes that many, loads each as a run does in
a process of its own, calls and copies what was loaded, and ends with 1 where one was mishandled: it
ran code, it neither loaded nor was refused, it was not as expected, it wrote to the terminal, or it
took more than 10 s or 2 GB.
"""

import argparse
import copy
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from attack_models import checkpoints, programs
from attack_models.case import FACTORY, MARK, Case

SECONDS, BYTES = 10, 2_000_000_000
_LOADED, _REFUSED, _FAULT = 0, 2, 3


def cases(seed: int) -> Iterator[Case]:
    """Every kind once, then damaged files at random, without an end.

    Args:
        seed: Of the random ones.
    """
    yield from programs.kinds()
    yield from checkpoints.kinds()
    draw = random.Random(seed)
    while True:
        for make in (programs.hidden, programs.damaged, checkpoints.damaged):
            yield make(draw.getrandbits(32))


def prepare() -> None:
    """Do once what each process would have to do again: imports, and the program to change."""
    import torch

    import mfac_compress.pipeline.inputs.model_file  # noqa: F401

    torch.set_num_threads(1)
    programs.base()


def outcome(case: Case, folder: Path) -> str:
    """Load a case in a process of its own.

    Args:
        case: What to make.
        folder: Where; empty.
    Returns:
        ``loaded``, ``refused``, or what went wrong.
    """
    folder.mkdir()
    log = folder.parent / f"{folder.name}.log"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _end(case, folder, log)
    status, usage = _wait(child)
    seconds = time.monotonic() - start
    said = log.read_text(errors="replace")[-2000:]
    if (folder / MARK).exists():
        return f"ran code: {said}"
    if seconds > SECONDS:
        return f"took {seconds:.0f} s"
    if usage.ru_maxrss * 1024 > BYTES:
        return f"took {usage.ru_maxrss / 1e6:.1f} GB"
    code = os.waitstatus_to_exitcode(status)
    if code in (_LOADED, _REFUSED):
        return said or ("loaded" if code == _LOADED else "refused")
    return f"ended with {code}: {said}"


def _wait(child: int) -> tuple[int, resource.struct_rusage]:
    stop = time.monotonic() + SECONDS + 1
    while time.monotonic() < stop:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _end(case: Case, folder: Path, log: Path) -> None:
    """Load a case and end this process with the code of what came of it."""
    code = _FAULT
    try:
        os.chdir(folder)
        (folder / "net.py").write_text(FACTORY)
        path = case.make(folder)
        with log.open("w") as written:  # only from here on: making one may warn
            os.dup2(written.fileno(), 1)
            os.dup2(written.fileno(), 2)
        code = _load(case, path, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _load(case: Case, path: Path, folder: Path) -> int:
    import torch

    from mfac_compress.pipeline.errors import InputError
    from mfac_compress.pipeline.inputs.model_file import load_model
    from mfac_compress.pipeline.recipe.schema import ModelSection

    try:
        model = load_model(path, ModelSection(**(case.section or {})), folder=folder)
    except InputError as error:
        text = str(error)
        assert len(text) < 5000, text
        assert text.isprintable(), ascii(text)
        return _REFUSED
    try:
        with warnings.catch_warnings():  # as a run does
            warnings.simplefilter("ignore")
            module = copy.deepcopy(model.module)
        module(torch.randn(3, 8))
    except Exception:
        # A run tries the model out on its data and refuses it then.
        return _REFUSED
    return _LOADED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of those to run")
    options = parser.parse_args()
    prepare()
    tried: dict[str, int] = {}
    mishandled = 0
    root = Path(tempfile.mkdtemp(prefix="mfac-attack-"))
    for number, case in zip(range(options.count), cases(options.seed), strict=False):
        if options.only not in case.name:
            continue
        found = outcome(case, root / str(number))
        tried[found] = tried.get(found, 0) + 1
        if found not in case.expected:
            mishandled += 1
            print(f"{case.name}: {found}, and was to be {' or '.join(case.expected)}", flush=True)
        elif options.only:
            print(f"{case.name}: {found}")
        shutil.rmtree(root / str(number), ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)
    counts = ", ".join(f"{count} {what}" for what, count in tried.items() if len(what) < 10)
    print(f"{sum(tried.values())} tried: {counts}; {mishandled} mishandled")
    return 1 if mishandled else 0


if __name__ == "__main__":
    sys.exit(main())
