"""Stage artefacts, kept by content.

A stage's folder is named by the hash of everything that its result depends on, the content of the
artefacts before it included. It is made beside its place, its manifest written last, and renamed
into place. The manifest holds the digest of each file and of itself, and all of them are checked
before anything is reused: what does not agree is made anew.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.digest import content_key, file_digest
from mfac_compress.pipeline.inputs.code_sources import CodeSources, unchanged
from mfac_compress.pipeline.ranks import Ranks

MANIFEST = "manifest.json"
_DIGEST = "digest"


@dataclass(frozen=True)
class Artefact:
    """A complete stage result on disk.

    Args:
        folder: Its files.
        digest: Of its files and facts, and of what it was made from.
        facts: What the stage said of it.
        files: SHA-256 of each file, by its path in the folder.
        reused: Whether it was found rather than made.
        rejected: Why an artefact that was found could not be reused; empty where there was none.
    """

    folder: Path
    digest: str
    facts: Any
    files: dict[str, str]
    reused: bool
    rejected: str = ""


class StageCache:
    """The artefacts of a run directory, the newest of each stage.

    Args:
        root: Folder of the cache; made when first needed. Only the first process looks at it.
        ranks: The processes that ask for artefacts together. Default: this one.
        code: The user's code as it was loaded before the stages. Files of it that only a stage
            loads are noted in the artefact, and looked at before it is reused.
    """

    def __init__(
        self, root: Path, ranks: Ranks | None = None, code: CodeSources | None = None
    ) -> None:
        self._root = root
        self._ranks = ranks or Ranks()
        self._code = code or CodeSources()

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
        folder = self._root / stage / key[:16]
        found = self._ranks.on_rank_zero(lambda: _find(folder, key))
        if isinstance(found, Artefact):
            return found
        made = None
        if self._ranks.is_rank_zero:
            made = self._make(stage, folder, key, make, rejected=found)
        else:
            make(None)
        artefact = self._ranks.on_rank_zero(lambda: made)
        assert artefact is not None
        return artefact

    def _make(
        self,
        stage: str,
        folder: Path,
        key: str,
        make: Callable[[Path], Mapping[str, Any]],
        rejected: str,
    ) -> Artefact:
        if folder.parent.is_file():
            folder.parent.unlink()  # damage, like what is wrong within an artefact
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as scratch:
            work = Path(scratch) / "artefact"
            work.mkdir()
            facts = dict(make(work))
            manifest = {
                "stage": stage,
                "key": key,
                "facts": json.loads(json.dumps(facts)),
                "files": _file_digests(work),
                "code": self._code.since(),
            }
            manifest[_DIGEST] = content_key(manifest)
            (work / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            _remove_older(folder.parent, but=Path(scratch))
            os.rename(work, folder)
        return _artefact(folder, manifest, reused=False, rejected=rejected)


class _RejectedError(Exception):
    """An artefact cannot be reused. The message says what of it is wrong."""


def _find(folder: Path, key: str) -> Artefact | str:
    """The artefact in a folder; or why it cannot be reused, empty where there is none."""
    if not folder.is_dir():
        return ""
    try:
        return _verified(folder, key)
    except _RejectedError as error:
        return str(error)


def _verified(folder: Path, key: str) -> Artefact:
    """The artefact in a folder, all of which is as it was written.

    Raises:
        _RejectedError: If it is not, or if code that it was made with has changed.
    """
    if not (folder / MANIFEST).is_file():
        raise _RejectedError(f"{MANIFEST} is missing")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop(_DIGEST)
        if digest != content_key(manifest) or manifest["key"] != key:
            raise _RejectedError(f"{MANIFEST} does not have the content that was written")
        found = _file_digests(folder)
        wrong = [name for name, _ in {*manifest["files"].items()} ^ {*found.items()}]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _RejectedError(f"{MANIFEST} cannot be read ({type(error).__name__})") from error
    if wrong:
        raise _RejectedError(f"{min(wrong)} does not have the content that was written")
    if not unchanged(manifest["code"]):
        raise _RejectedError("code that it was made with has changed")
    return _artefact(folder, {**manifest, _DIGEST: digest}, reused=True)


def _artefact(
    folder: Path, manifest: Mapping[str, Any], *, reused: bool, rejected: str = ""
) -> Artefact:
    return Artefact(
        folder, manifest[_DIGEST], manifest["facts"], manifest["files"], reused, rejected
    )


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files but the manifest, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in named.items() if name != MANIFEST}


def _remove_older(stage: Path, but: Path) -> None:
    """Remove the stage's older artefacts, and what a killed run left half made."""
    for other in stage.iterdir():
        if other == but:
            continue
        if other.is_dir() and not other.is_symlink():
            shutil.rmtree(other)
        else:
            other.unlink()
