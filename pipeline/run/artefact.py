"""A stage's complete result: a folder of files, and a manifest that says what they must be.

The manifest holds the digest of each file and of itself, and all of them are checked before
anything is reused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.digest import content_key, file_digest
from mfac_compress.pipeline.inputs.code_sources import unchanged

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
        code: That of the files of the user's code that were loaded while it was made, by path.
        reused: Whether it was found rather than made.
        rejected: Why an artefact that was found could not be reused; empty where there was none.
    """

    folder: Path
    digest: str
    facts: Any
    files: dict[str, str]
    code: dict[str, str]
    reused: bool
    rejected: str = ""


class RejectedError(Exception):
    """An artefact cannot be reused. The message says what of it is wrong."""


def complete(
    folder: Path, stage: str, key: str, facts: Mapping[str, Any], code: Mapping[str, str]
) -> Artefact:
    """Write the manifest of a folder that holds all files of an artefact.

    Args:
        folder: Its files.
        stage: Name of the stage.
        key: Hash of all that the artefact depends on.
        facts: What the stage says of it, as plain JSON.
        code: SHA-256 of the files of the user's code that only the stage has loaded, by path; what
            no file has for those that changed meanwhile, so that the artefact is never reused.
    """
    manifest = {
        "stage": stage,
        "key": key,
        "facts": json.loads(json.dumps(dict(facts))),
        "files": _file_digests(folder),
        "code": dict(code),
    }
    digest = content_key(manifest)
    text = json.dumps({**manifest, _DIGEST: digest}, indent=2)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return _described(folder, digest, manifest, reused=False)


def verified(folder: Path, key: str) -> Artefact:
    """The artefact in a folder, all of which is as it was written.

    Raises:
        RejectedError: If it is not, or if code that it was made with has changed.
    """
    if not (folder / MANIFEST).is_file():
        raise RejectedError(f"{MANIFEST} is missing")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop(_DIGEST)
        if digest != content_key(manifest) or manifest["key"] != key:
            raise RejectedError(f"{MANIFEST} does not have the content that was written")
        found = _file_digests(folder)
        wrong = [name for name, _ in {*manifest["files"].items()} ^ {*found.items()}]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RejectedError(f"{MANIFEST} cannot be read ({type(error).__name__})") from error
    if wrong:
        raise RejectedError(f"{min(wrong)} does not have the content that was written")
    if not unchanged(manifest["code"]):
        raise RejectedError("code that it was made with has changed")
    return _described(folder, digest, manifest, reused=True)


def _described(folder: Path, digest: str, manifest: Mapping[str, Any], *, reused: bool) -> Artefact:
    facts, files, code = (manifest[name] for name in ("facts", "files", "code"))
    return Artefact(folder, digest, facts, files, code, reused)


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files but the manifest, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in named.items() if name != MANIFEST}
