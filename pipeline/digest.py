"""SHA-256 of files and of plain JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def content_key(value: Mapping[str, Any]) -> str:
    """SHA-256 in hex of plain JSON, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_digest(path: Path | str) -> str:
    """SHA-256 in hex of a file's content.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def package_digest() -> str:
    """SHA-256 in hex of the package's sources on disk: another version makes other artefacts."""
    root = Path(__file__).parent.parent
    folders = [root / name for name in ("export", "mfac", "pipeline")]
    sources = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return content_key({str(path.relative_to(root)): file_digest(path) for path in sources})
