"""What an attack is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

ANY = frozenset({0, 1, 2})
"""Exit codes that a file may end with of which only its maker's luck says whether it is valid."""
REFUSED = frozenset({2})
TAKEN = frozenset({0})


@dataclass(frozen=True)
class Case:
    """A file for ``mfac-compress speed``.

    Attributes:
        name: Of the kind, with what was drawn.
        write: Makes it in an empty folder; returns its path.
        codes: Exit codes that are right.
        options: Of the command.
    """

    name: str
    write: Callable[[Path], Path]
    codes: frozenset[int] = ANY
    options: tuple[str, ...] = ()


def of_model(
    name: str,
    make: Callable[[], onnx.ModelProto],
    codes: frozenset[int] = ANY,
    options: tuple[str, ...] = (),
) -> Case:
    """A case of a model that is written as it is."""
    return Case(name, partial(write, make), codes, options)


def write(make: Callable[[], onnx.ModelProto], folder: Path) -> Path:
    """Write a model to a folder."""
    (folder / "model.onnx").write_bytes(make().SerializeToString())
    return folder / "model.onnx"
