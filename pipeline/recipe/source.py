"""Where a recipe came from: its file, the line of each key, the folder its paths start at; and
what is wrong there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mfac_compress.pipeline.files import resolved
from mfac_compress.pipeline.quoting import shortened

KeyPath = tuple[str | int, ...]
"""The way to a value of a recipe: ``("prune", "include", 0)``."""


def key_name(key: KeyPath) -> str:
    """Write a key path as messages do.

    Args:
        key: Key path.
    Returns:
        Parts joined by dots; list positions and parts that hold dots in brackets.

    >>> key_name(("prune", "include", 0))
    'prune.include[0]'
    >>> key_name(("prune", "overrides", "layer1.*"))
    "prune.overrides['layer1.*']"
    """
    name = ""
    for part in key:
        if isinstance(part, str) and part.replace("_", "").replace("-", "").isalnum():
            name += f".{shortened(part)}" if name else shortened(part)
        else:
            name += f"[{shortened(part) if isinstance(part, str) else part!r}]"
    return name


@dataclass(frozen=True)
class RecipeSource:
    """Origin of a recipe. Two are equal where relative paths start at the same folder.

    Attributes:
        folder: Absolute folder that relative paths start at.
        path: The recipe's file as the user named it; None for a recipe made in Python.
        lines: Line of each key of the file, counted from 1.
        overridden: Keys that ``--set`` gave.
        remarks: What users should read of how the file was understood, a line each.
    """

    folder: Path = field(default_factory=Path.cwd)
    path: Path | None = field(default=None, compare=False)
    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False)
    overridden: frozenset[KeyPath] = field(default=frozenset(), compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def resolve(self, path: str) -> Path:
        """Give the absolute path of a path written in the recipe (``~`` is the home folder)."""
        return resolved(path, self.folder)

    def line(self, key: KeyPath) -> int | None:
        """Give the line of a key, or of the nearest section around it that the file writes.

        Args:
            key: Key path.
        Returns:
            The line, counted from 1; None where ``--set`` gave the value or no line is known.
        """
        known = self._nearest(key)
        return None if known in self.overridden else self.lines.get(known)

    def place(self, key: KeyPath) -> str:
        """Say where the value of a key came from.

        Args:
            key: Key path.
        Returns:
            ``recipe.yaml:14``, ``--set prune.sparsity``, ``recipe.yaml`` where no line is known,
            or the empty string for a recipe made in Python.
        """
        known = self._nearest(key)
        if known in self.overridden:
            return "--set " + ".".join(shortened(str(part)) for part in known)
        if self.path is None:
            return ""
        return f"{self.path}:{self.lines[known]}" if known in self.lines else str(self.path)

    def _nearest(self, key: KeyPath) -> KeyPath:
        while key and key not in self.overridden and key not in self.lines:
            for given in self.overridden:
                if given[: len(key)] == key:
                    return given  # `--set run.x.y` made the section run.x
            key = key[:-1]
        return key


@dataclass(frozen=True)
class RecipeIssue:
    """One thing that is wrong with a recipe.

    Attributes:
        key: The key to fix: relative to the section where a section finds it, else from the top;
            empty for the whole.
        text: What must hold, what came, what to do; a sentence whose subject is the key.
        line: Where, if it is not where the key is.
        place: Where, in words, if it is not in the file.
    """

    key: KeyPath
    text: str
    line: int | None = None
    place: str | None = None
