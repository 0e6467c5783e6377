"""Stage artefacts, kept by content.

A stage's folder is named by the hash of everything that its result depends on. It is made beside
its place, its manifest written last, and renamed into place: a folder that is there is complete.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.world import World

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artefact:
    """A complete stage result on disk.

    Args:
        folder: Its files.
        key: Hash of what it was made from.
        facts: What the stage said of it.
        reused: Whether it was found rather than made.
    """

    folder: Path
    key: str
    facts: dict[str, Any]
    reused: bool


class StageCache:
    """The artefacts of a run directory, the newest of each stage.

    Args:
        root: Folder of the cache; made when first needed. Only the first process looks at it.
        world: The processes that ask for artefacts together. Default: this one.
    """

    def __init__(self, root: Path, world: World | None = None) -> None:
        self._root = root
        self._world = world or World()

    def get(
        self,
        stage: str,
        ingredients: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
    ) -> Artefact:
        """The stage's artefact for these ingredients: found, or made now.

        Args:
            stage: Name of the stage.
            ingredients: All that the result depends on, as plain JSON.
            make: Fills an empty folder and returns the facts, as plain JSON. Called in all
                processes; the first one alone has a folder.
        """
        key = content_key(ingredients)
        folder = self._root / stage / key[:16]
        found = self._world.first(lambda: self._find(folder, key))
        if found is not None:
            return found
        made = None
        if self._world.is_first:
            made = self._make(stage, folder, key, ingredients, make)
        else:
            make(Path(os.devnull))
        artefact = self._world.first(lambda: made)
        assert artefact is not None
        return artefact

    @staticmethod
    def _find(folder: Path, key: str) -> Artefact | None:
        if not (folder / MANIFEST).is_file():
            return None
        return Artefact(folder, key, _read_facts(folder), reused=True)

    def _make(
        self,
        stage: str,
        folder: Path,
        key: str,
        ingredients: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
    ) -> Artefact:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as scratch:
            work = Path(scratch) / "artefact"
            work.mkdir()
            facts = dict(make(work))
            manifest = {"stage": stage, "key": key, "facts": facts, "ingredients": ingredients}
            (work / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            self._forget_all(folder.parent, but=Path(scratch))
            os.rename(work, folder)
        return Artefact(folder, key, _read_facts(folder), reused=False)

    @staticmethod
    def _forget_all(stage: Path, but: Path) -> None:
        """Remove the stage's older artefacts, and what a killed run left half made."""
        for other in stage.iterdir():
            if other != but:
                shutil.rmtree(other)


def content_key(ingredients: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON, whatever the order of its keys."""
    canonical = json.dumps(ingredients, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["facts"]
