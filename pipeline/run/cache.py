"""Stage artefacts, kept by content.

A stage's folder is named by the hash of everything that its result depends on, the content of the
artefacts before it included. It is made beside its place and renamed into place when it is
complete. What is found is checked before it is reused; what does not agree is made anew. Where runs
share a pool, an artefact is looked for there before it is made, and given to it afterwards.
"""

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.digest import content_key
from mfac_compress.pipeline.inputs.code_sources import CHANGED, CodeSources
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.run.artefact import Artefact, RejectedError, complete, verified
from mfac_compress.pipeline.run.checkpoint import Checkpoints
from mfac_compress.pipeline.run.pool import Pool, remove
from mfac_compress.pipeline.versions import is_package_loaded

_SCRATCH = ".making-"


class StageCache:
    """The artefacts of a run directory, the newest of each stage.

    Args:
        root: Folder of the cache; made when first needed. Only the first process looks at it, and
            no other run does meanwhile.
        ranks: The processes that ask for artefacts together. Default: this one.
        code: The user's code as it was loaded before the stages. Files of it that only a stage
            loads are noted in the artefact, and looked at before it is reused.
        pool: What this run shares with others; of the first process. Default: nothing.
    """

    def __init__(
        self,
        root: Path,
        ranks: Ranks | None = None,
        code: CodeSources | None = None,
        pool: Pool | None = None,
    ) -> None:
        self._root = root
        self._ranks = ranks or Ranks()
        self._code = code or CodeSources()
        self._checkpoints: dict[str, Checkpoints] = {}
        # Code that cannot be hashed gives each run keys of its own, which no other will look for.
        self._pool = None if self._code.unseen else pool

    def get(
        self,
        stage: str,
        depends_on: Mapping[str, Any],
        make: Callable[[Path | None], Mapping[str, Any]],
    ) -> Artefact:
        """The stage's artefact for what it depends on: found, or made now.

        Args:
            stage: Name of the stage.
            depends_on: All that the result depends on, as plain JSON.
            make: Fills an empty folder and returns the facts, as plain JSON. Called in all
                processes; the first one alone has a folder.
        """
        key = content_key({"stage": stage, **depends_on})
        found = self._ranks.on_rank_zero(lambda: self._find(stage, key))
        if isinstance(found, Artefact):
            return found
        made = None
        if self._ranks.is_rank_zero:
            made = self._make(stage, key, make, rejected=found)
        else:
            make(None)
        artefact = self._ranks.on_rank_zero(lambda: made)
        assert artefact is not None
        return artefact

    def _find(self, stage: str, key: str) -> Artefact | str:
        """The artefact, of this run or from the pool; or why what is there cannot be reused."""
        folder = self._folder(stage, key)
        found = _verified(folder, key) if folder.is_dir() else ""
        for left in folder.parent.glob(f"{_SCRATCH}*"):  # by a run that was killed
            remove(left)
        if isinstance(found, Artefact):
            _remove_but(folder)  # beside it, nothing is of use
            if self._pool is not None and not self._pool.note_use(stage, key):
                self._give(stage, key, folder)
            return found
        return (self._take(stage, key) if self._pool else "") or found

    def _take(self, stage: str, key: str) -> Artefact | str:
        """The artefact from the pool; or why what is there cannot be reused."""
        assert self._pool is not None
        with self._scratch(stage) as work:
            if not self._pool.take(stage, key, work):
                return ""
            taken = _verified(work, key)
            return self._put(taken, stage, key) if isinstance(taken, Artefact) else taken

    def checkpoints(self, stage: str, depends_on: Mapping[str, Any]) -> Checkpoints:
        """What a killed run can go on with; gone when the artefact is in its place."""
        key = content_key({"stage": stage, **depends_on})
        folder = self._root / stage / f".unfinished-{key[:16]}"
        return self._checkpoints.setdefault(key, Checkpoints(folder, key, self._code))

    def remove_other_steps(self, stages: Collection[str]) -> None:
        """Remove the artefacts of numbered stages that the run no longer has."""
        for folder in self._root.glob("*-[0-9]*"):
            if folder.name not in stages:
                remove(folder)

    def _make(
        self, stage: str, key: str, make: Callable[[Path | None], Mapping[str, Any]], rejected: str
    ) -> Artefact:
        with self._scratch(stage) as work:
            facts = make(work)
            went_on = self._checkpoints.get(key)
            code = went_on.code if went_on else self._code.since()
            if went_on and went_on.rejected and not rejected:
                rejected = f"the checkpoint could not be used: {went_on.rejected}"
            if not is_package_loaded():
                code = {**code, "mfac_compress": CHANGED}
            made = complete(work, stage, key, facts, code)
            lasting = CHANGED not in code.values()
            if self._pool is not None and lasting and self._give(stage, key, work):
                # Another run was faster. With its artefact, later stages of both have one key.
                taken = self._take(stage, key)
                if isinstance(taken, Artefact):
                    return replace(taken, reused=False, rejected=rejected)
            return replace(self._put(made, stage, key), rejected=rejected)

    def _give(self, stage: str, key: str, folder: Path) -> bool:
        """Put an artefact into the pool; whether one was there, of another run."""
        assert self._pool is not None
        return self._pool.give(
            stage, key, folder, lambda entry: isinstance(_verified(entry, key), Artefact)
        )

    def _folder(self, stage: str, key: str) -> Path:
        return self._root / stage / key[:16]

    @contextmanager
    def _scratch(self, stage: str) -> Iterator[Path]:
        """An empty folder beside the stage's artefacts, of which nothing stays."""
        place = self._root / stage
        if place.is_file():
            place.unlink()  # damage, like what is wrong within an artefact
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place) as scratch:
            work = Path(scratch) / "artefact"
            work.mkdir()
            yield work

    def _put(self, artefact: Artefact, stage: str, key: str) -> Artefact:
        """Move a complete artefact to its place, and remove the stage's older ones."""
        folder, scratch = self._folder(stage, key), artefact.folder.parent
        if os.path.lexists(folder):
            remove(folder)  # it could not be reused
        os.rename(artefact.folder, folder)
        # Only now: a run that is killed in between has the artefact, or what it can make it from.
        _remove_but(folder, scratch)
        return replace(artefact, folder=folder)


def _verified(folder: Path, key: str) -> Artefact | str:
    """The artefact in a folder; or why it cannot be reused."""
    try:
        return verified(folder, key)
    except RejectedError as error:
        return str(error)


def _remove_but(folder: Path, scratch: Path | None = None) -> None:
    """Remove what stands beside a stage's artefact: older ones, and what a killed run left."""
    for other in folder.parent.iterdir():
        if other not in (folder, scratch):
            remove(other)
