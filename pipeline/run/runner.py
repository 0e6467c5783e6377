"""Goes through stages: each artefact is found, or made now. Knows no stage by name."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mfac_compress.pipeline.errors import stage_named
from mfac_compress.pipeline.inputs.code_sources import CodeSources
from mfac_compress.pipeline.progress import Line, Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.run.artefact import Artefact
from mfac_compress.pipeline.run.cache import StageCache
from mfac_compress.pipeline.run.stage import Before, Job, Stage
from mfac_compress.pipeline.versions import check_environment, loaded_environment

loaded_environment()


class StageClock:
    """Shows the stages of a run, times them, and names them in whatever goes wrong.

    Args:
        progress: Where they are shown.

    Attributes:
        seconds: Time of each stage that is over, by its name.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Line]:
        """Time one stage."""
        start = time.perf_counter()
        named = stage_named(name, resumable=bool(self.seconds))
        with named, self.progress.stage(name) as line:
            yield line
        self.seconds[name] = round(time.perf_counter() - start, 3)


def check_stages(stages: Sequence[Stage], ranks: Ranks) -> None:
    """Make every stage's checks, in all processes.

    Raises:
        InputError: If one refuses.
    """
    for stage in stages:
        stage.check(ranks, **stage.given)


def run_stages(
    stages: Sequence[Stage],
    cache_of: Callable[[Ranks], StageCache],
    code: CodeSources,
    ranks: Ranks,
    clock: StageClock,
) -> dict[str, Artefact]:
    """Find or make the artefact of each stage, in the order given.

    Args:
        stages: Each comes after those whose artefacts it is given.
        cache_of: Where artefacts are found and kept, as the given processes share it.
        code: The user's code as it was loaded before the stages.
        ranks: The processes that run this together.
        clock: Shows and times the stages.

    Returns:
        The artefacts by the stage's name, in all processes.

    Raises:
        CompressError: If a stage fails; it is named.
    """
    with ranks.raise_on_every_rank():
        check_environment()
    environment = {
        **loaded_environment(),
        "code": code.digest,
        # What cannot be hashed may have changed: then nothing may be found.
        "unseen": code.unseen and uuid.uuid4().hex,
    }
    done: dict[str, Artefact] = {}
    for stage in stages:
        before = {role: done[name] for role, name in stage.after.items()}
        who = ranks if stage.ranks == "all" else Ranks()
        key = {**environment, "processes": who.size, **stage.key(before)}

        get = partial(_get, stage, before, cache_of(who), key, who, clock.progress)
        with clock.stage(stage.name) as line:
            artefact = get() if stage.ranks == "all" else ranks.on_rank_zero(get)
            line.reused = artefact.reused
        if artefact.rejected:
            reason = artefact.rejected
            clock.progress.warn(f"{stage.name}: made anew, since in the cache {reason}")
        done[stage.name] = artefact
    ranks.on_rank_zero(lambda: cache_of(Ranks()).remove_other_steps(done))
    return done


def _get(
    stage: Stage,
    before: Before,
    cache: StageCache,
    key: Mapping[str, Any],
    ranks: Ranks,
    progress: Progress,
) -> Artefact:
    """The stage's artefact, its facts of the stage's own type."""

    def make(folder: Path | None) -> Mapping[str, Any]:
        checkpoints = cache.checkpoints(stage.name, key)
        facts = stage.run(Job(folder, before, ranks, progress, checkpoints), **stage.given)
        return asdict(facts) if is_dataclass(facts) else facts

    artefact = cache.get(stage.name, key, make)
    return replace(artefact, facts=TypeAdapter(stage.facts).validate_python(artefact.facts))
