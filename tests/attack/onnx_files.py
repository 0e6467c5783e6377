"""Hostile ONNX files for ``mfac-compress speed``, each of which must end in an answer.

``python tests/attack/onnx_files.py --count 600 --seed 1`` makes that many, runs the command with
``-o`` on each in a process of its own, and ends with 1 where one was mishandled: an exit code that
is not 0, 1 or 2, or not the expected one, a traceback, more than 30 s or 8 GB, or a written file
whose outputs are not those of the file in stock ONNX Runtime. Whatever can be replaced is: nothing
is timed.
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
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from attack_onnx_files import bombs, damage, files, models
from attack_onnx_files.case import Case

SECONDS, BYTES = 30, 8_000_000_000
_WRONG_OUTPUTS = 40
_SEED = 7  # of other inputs than those that the command makes up


def cases(seed: int) -> Iterator[Case]:
    """Every kind once, then files that are damaged at random, without an end.

    Args:
        seed: Of the random ones.
    """
    for each in (models, files, bombs):
        yield from each.kinds()
    draw = random.Random(seed)
    while True:
        yield damage.damaged(draw.getrandbits(32))
        yield damage.damaged(draw.getrandbits(32))
        yield damage.flipped(draw.getrandbits(32))


def outcome(case: Case, folder: Path) -> tuple[int | None, str]:
    """Run the command on a case, in a process of its own.

    Args:
        case: What to make.
        folder: Where; empty.
    Returns:
        The exit code, and nothing or what went wrong.
    """
    log = folder.parent / f"{folder.name}.log"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _end(case, folder, log)
    status, usage = _wait(child)
    said = log.read_text(errors="replace")
    log.unlink()
    if time.monotonic() - start > SECONDS:
        return None, f"took {time.monotonic() - start:.0f} s"
    if usage.ru_maxrss * 1024 > BYTES:
        return None, f"took {usage.ru_maxrss / 1e6:.1f} GB"
    code = os.waitstatus_to_exitcode(status)
    if code not in case.codes or "Traceback" in said:
        return code, f"ended with {code}: {said[-2000:]}"
    return code, ""


def _wait(child: int) -> tuple[int, resource.struct_rusage]:
    stop = time.monotonic() + SECONDS + 1
    while time.monotonic() < stop:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _end(case: Case, folder: Path, log: Path) -> None:
    """Run the command, and end this process with its exit code."""
    os.environ["COLUMNS"] = "120"
    with log.open("w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 70
    try:
        code = _run(case, folder)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(case: Case, folder: Path) -> int:
    from mfac_compress.pipeline.cli import main

    path, output = case.write(folder), folder / "out.onnx"
    try:
        main(["speed", str(path), *case.options, "-o", str(output)])
        code = 0
    except SystemExit as end:
        code = end.code
    if code == 1 and not output.exists():  # nothing to replace
        return 1 if 1 in case.codes else 0
    if code == 0:
        return 0 if _are_equal(path, output, case) else _WRONG_OUTPUTS
    assert not output.exists(), "a file was written all the same"
    return code


def _are_equal(path: Path, output: Path, case: Case) -> bool:
    """Whether two files compute the same of other inputs."""
    import onnx_ir as ir

    from mfac_compress.export import RandomInputs, Workload, open_session
    from mfac_compress.export.sparse.difference import largest_difference, max_difference
    from mfac_compress.export.sparse.files import read_model
    from mfac_compress.export.sparse.graph import Graph

    shapes = {}
    if "--shape" in case.options:
        name, numbers = case.options[case.options.index("--shape") + 1].split("=")
        shapes[name] = [int(number) for number in numbers.split(",")]
    inputs = RandomInputs(path, shapes, seed=_SEED)
    feeds = inputs(Workload(inputs.fixed_batch or 3, threads=1))
    dense = read_model(path)
    try:
        open_session(path).run(None, dict(feeds))
    except Exception:  # it takes one row only, whatever its input says
        feeds = inputs(Workload(1, threads=1))
    difference = largest_difference(path, ir.load(output), feeds)
    print("difference", difference)
    return difference is None or difference <= max_difference(Graph(dense))


def _replace_everything() -> None:
    """Let sparse operators be faster, without a clock: each model runs once."""
    from mfac_compress.export.sparse import choose, whole
    from mfac_compress.export.sparse.files import has_sparse_operators
    from mfac_compress.export.sparse.measure import open_model
    from mfac_compress.pipeline import speed

    def time_models(models, feeds, *, threads, rounds):
        for model in models:
            open_model(model, threads).run(None, dict(feeds))
        return [[0.5 if has_sparse_operators(model) else 1.0] * rounds for model in models]

    for module in (choose, whole):
        module.time_models = time_models
    speed.confirm = lambda found, *_, **__: found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", type=int, default=1, help="take only every STEP-th of the COUNT")
    parser.add_argument("--only", default="", help="part of the names of those to run")
    options = parser.parse_args()
    # Imported before the processes part, so that none has to do it again.
    import mfac_compress.pipeline.speed  # noqa: F401

    _replace_everything()
    tried: dict[int | None, int] = {}
    mishandled = 0
    root = Path(tempfile.mkdtemp(prefix="mfac-attack-"))
    for number, case in enumerate(islice(cases(options.seed), 0, options.count, options.step)):
        if options.only not in case.name:
            continue
        folder = root / str(number)
        folder.mkdir()
        code, wrong = outcome(case, folder)
        tried[code] = tried.get(code, 0) + 1
        if wrong:
            mishandled += 1
            print(f"{case.name}: {wrong}, and was to be {sorted(case.codes)}", flush=True)
        elif options.only:
            print(f"{case.name}: {code}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)
    counts = ", ".join(f"{count} with {code}" for code, count in tried.items())
    print(f"{sum(tried.values())} tried: {counts}; {mishandled} mishandled")
    return 1 if mishandled else 0


if __name__ == "__main__":
    sys.exit(main())
