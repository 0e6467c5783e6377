"""Hostile ONNX files for ``mfac-compress speed``, each of which must end in an answer.

``python tests/attack/onnx_files.py --count 600 --seed 1`` makes that many, runs the command with
``-o`` on each in a process of its own, and ends with 1 where one was mishandled: an exit code that
is not 0, 1 or 2, or not the expected one, a traceback, more than 30 s or 8 GB, or a written file
whose outputs are not those of the file in stock ONNX Runtime. Whatever can be replaced is: nothing
is timed.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from attack_onnx_files import bombs, damage, files, models
from attack_onnx_files.case import Case
from harness import attack, in_process, write_to

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


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """Run the command on a case, in a process of its own.

    Args:
        case: What to make.
        folder: Where; empty.
    Returns:
        The exit code, and nothing or what went wrong.
    """
    log = folder.parent / f"{folder.name}.log"

    def run() -> int:
        os.environ["COLUMNS"] = "120"
        write_to(log)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        return _run(case, folder)

    ended = in_process(run, log, seconds=SECONDS, most_bytes=BYTES)
    log.unlink(missing_ok=True)
    wrong = ended.excess
    if not wrong and (ended.code not in case.codes or "Traceback" in ended.said):
        wrong = f"ended with {ended.code}: {ended.said[-2000:]}"
    return f"with {ended.code}", wrong and f"{wrong}, and was to be {sorted(case.codes)}"


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


def _prepare() -> None:
    """Import before the processes part, so that none has to do it again."""
    import mfac_compress.pipeline.speed  # noqa: F401

    _replace_everything()


if __name__ == "__main__":
    sys.exit(attack(__doc__, cases, outcome, count=600, prepare=_prepare))
