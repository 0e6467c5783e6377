"""What an attack with a model file is made of."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED = ("refused",)
LOADED = ("loaded",)
EITHER = ("refused", "loaded")

MARK = "it_ran"
"""The file that every payload makes, where it is run."""
CODE = f"__import__('pathlib').Path({MARK!r}).touch()"

FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
"""


@dataclass(frozen=True)
class Case:
    """One hostile model file.

    Attributes:
        name: What is wrong with it.
        make: Writes it to an empty folder and returns its path.
        expected: What may come of it.
        section: The recipe's ``model``.
    """

    name: str
    make: Callable[[Path], Path]
    expected: tuple[str, ...] = REFUSED
    section: dict[str, Any] | None = None


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    """A maker that writes bytes to a file of this name."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


def unpacked(content: bytes) -> dict[str, bytes]:
    """The records of an archive by their full names."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(records: dict[str, bytes] | list[tuple[str, bytes]], **options: Any) -> bytes:
    """An archive of records; a list may repeat names."""
    buffer = io.BytesIO()
    pairs = records.items() if isinstance(records, dict) else records
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in pairs:
            archive.writestr(name, content)
    return buffer.getvalue()
