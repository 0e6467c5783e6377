"""Hostile data: files, folders and datasets that must be refused, or loaded as what they are.

``python tests/attack/data.py --count 400 --seed 1`` makes that many, loads each as a run does in a
process of its own, and ends with 1 where one was mishandled: it neither loaded nor was refused, it
was not as expected, or it took more than 10 s or 2 GB.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from attack_data import arrays, containers, datasets, folders, pictures
from attack_data.case import Case

SECONDS, BYTES = 10, 2_000_000_000
_LOADED, _REFUSED, _FAULT = 0, 2, 3


def cases(seed: int) -> Iterator[Case]:
    """Every kind once, then damaged files at random, without an end.

    Args:
        seed: Of the random ones.
    """
    for kinds in (arrays, containers, pictures, folders, datasets):
        yield from kinds.kinds()
    draw = random.Random(seed)
    while True:
        for kinds in (containers, pictures):
            yield kinds.damaged(draw.getrandbits(32))


def outcome(case: Case, folder: Path) -> str:
    """Load a case in a process of its own.

    Args:
        case: What to make.
        folder: Where; empty.
    Returns:
        ``loaded``, ``refused``, or what went wrong.
    """
    log = folder.parent / f"{folder.name}.log"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _end(case, folder, log)
    status, usage = _wait(child)
    seconds = time.monotonic() - start
    if seconds > SECONDS:
        return f"took {seconds:.0f} s"
    if usage.ru_maxrss * 1024 > BYTES:
        return f"took {usage.ru_maxrss / 1e6:.1f} GB"
    code = os.waitstatus_to_exitcode(status)
    if code in (_LOADED, _REFUSED):
        return "loaded" if code == _LOADED else "refused"
    return f"ended with {code}: {log.read_text(errors='replace')[-2000:]}"


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
    with log.open("w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    code = _FAULT
    try:
        code = _load(case.make(folder), folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _load(section: dict, folder: Path) -> int:
    from pydantic import TypeAdapter, ValidationError

    from mfac_compress.pipeline.errors import InputError
    from mfac_compress.pipeline.inputs.data import load_data
    from mfac_compress.pipeline.recipe.data_schema import Data
    from mfac_compress.pipeline.recipe.source import RecipeSource

    try:
        data = TypeAdapter(Data).validate_python(section, context=RecipeSource(folder))
        splits = load_data(data, folder=folder, needs_recovery=False)
        for split in splits:
            for x, y in split.batches(64):
                assert bool(x.isfinite().all())
                assert bool(y.isfinite().all())
    except (InputError, ValidationError) as error:
        refusal = error
    else:
        return _LOADED
    text = str(refusal)
    print(text)
    if not isinstance(refusal, ValidationError):
        assert "data" in text or "image" in text
        assert len(text) < 3000
        assert text.isprintable()
    return _REFUSED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", type=int, default=1, help="take only every STEP-th of the COUNT")
    parser.add_argument("--only", default="", help="part of the names of those to run")
    options = parser.parse_args()
    # Imported before the processes part, so that none has to do it again.
    import mfac_compress.pipeline.inputs.data  # noqa: F401

    tried: dict[str, int] = {}
    mishandled = 0
    root = Path(tempfile.mkdtemp(prefix="mfac-attack-"))
    for number, case in enumerate(islice(cases(options.seed), 0, options.count, options.step)):
        if options.only not in case.name:
            continue
        folder = root / str(number)
        folder.mkdir()
        found = outcome(case, folder)
        tried[found] = tried.get(found, 0) + 1
        if found not in case.expected:
            mishandled += 1
            print(f"{case.name}: {found}, and was to be {' or '.join(case.expected)}")
        elif options.only:
            print(f"{case.name}: {found}")
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)
    counts = ", ".join(f"{count} {what}" for what, count in tried.items() if len(what) < 10)
    print(f"{sum(tried.values())} tried: {counts}; {mishandled} mishandled")
    return 1 if mishandled else 0


if __name__ == "__main__":
    sys.exit(main())
