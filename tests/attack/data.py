"""Hostile data: files, folders and datasets that must be refused, or loaded as what they are.

``python tests/attack/data.py --count 400 --seed 1`` makes that many, loads each as a run does in a
process of its own, and ends with 1 where one was mishandled: it neither loaded nor was refused, it
was not as expected, or it took more than 10 s or 2 GB.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from attack_data import arrays, containers, datasets, folders, pictures
from attack_data.case import Case
from harness import attack, expected, in_process, write_to

SECONDS, BYTES = 10, 2_000_000_000
_LOADED, _REFUSED = 0, 2


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

    def load() -> int:
        write_to(log)
        return _load(case.make(folder), folder)

    ended = in_process(load, log, seconds=SECONDS, most_bytes=BYTES)
    if ended.excess:
        return ended.excess
    if ended.code in (_LOADED, _REFUSED):
        return "loaded" if ended.code == _LOADED else "refused"
    return f"ended with {ended.code}: {ended.said[-2000:]}"


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


def _prepare() -> None:
    """Import before the processes part, so that none has to do it again."""
    import mfac_compress.pipeline.inputs.data  # noqa: F401


if __name__ == "__main__":
    sys.exit(
        attack(
            __doc__,
            cases,
            lambda case, folder: expected(outcome(case, folder), case),
            prepare=_prepare,
        )
    )
