"""What became of each line of a SparseML recipe, and the recipe of ours that grows from them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mfac_compress.pipeline.quoting import printable, shortened
from mfac_compress.pipeline.recipe.source import KeyPath, key_name
from mfac_compress.pipeline.recipe.sparseml.document import Modifier


class Fate(Enum):
    """What became of a line."""

    MAPPED = "mapped"
    """It means the same."""
    NEARLY = "approximately"
    """It means nearly the same; the finding says what differs."""
    NOT_NEEDED = "not needed"
    """It says where or how SparseML computes, not what."""
    DROPPED = "no counterpart"
    """What it asks for is left out, if the user allows that."""
    REFUSED = "refused"
    """Nothing can stand for it: a recipe without it would be another one."""


@dataclass(frozen=True)
class Finding:
    """What became of one line.

    Args:
        key: Where it stands in the SparseML recipe.
        line: Of the SparseML recipe, counted from 1.
        what: Modifier, key and value.
        fate: What became of it.
        text: Key and value of ours, and what differs; or the reason.
    """

    key: KeyPath
    line: int
    what: str
    fate: Fate
    text: str

    def __str__(self) -> str:
        return f"{self.fate.value}: line {self.line}, {self.what}: {self.text}"


@dataclass
class Translation:
    """A recipe of ours as far as it is known.

    Attributes:
        values: Its sections, plain values.
        lines: Key of it to the line of the SparseML recipe that it comes from.
        findings: What became of each line so far.
    """

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def put(
        self, modifier: Modifier, key: str, to: str, value: Any, but: str = "", also: str = ""
    ) -> None:
        """Let a key of a modifier become a key of ours.

        Args:
            modifier: The modifier.
            key: Its key, with or without a value in the recipe.
            to: Ours, dotted.
            value: Of ours.
            but: What differs; empty where both mean the same.
            also: What to say where nothing differs.
        """
        path = tuple(to.split("."))
        section = self.values
        for part in path[:-1]:
            section = section.setdefault(part, {})
        section[path[-1]] = value
        line = modifier.line_of(key)
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)
        self.lines[path] = line
        said = f"{key_name(path)}: {_shown(value)}"
        more = but or also
        fate = Fate.NEARLY if but else Fate.MAPPED
        self.note(modifier, key, fate, f"{said}. {more}" if more else said)

    def note(self, modifier: Modifier, key: str, fate: Fate, text: str) -> None:
        """Say what became of a key; of the modifier as a whole where ``key`` is empty."""
        what = modifier.name
        if key:
            value = _shown(modifier.values.get(key))
            given = "" if key in modifier.lines else " (SparseML's default)"
            what = printable(f"{what}.{key}: {value}{given}")
        path = (*modifier.key, key) if key else modifier.key
        self.findings.append(Finding(path, modifier.line_of(key), what, fate, printable(text)))

    def note_given(self, modifier: Modifier, keys: str, fate: Fate, text: str) -> None:
        """Say the same of each of some keys that the recipe gives (names with spaces between)."""
        for key in keys.split():
            if key in modifier.lines:
                self.note(modifier, key, fate, text)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return shortened(f"[{', '.join(map(_shown, value[:20]))}]", 100)
    if isinstance(value, dict):
        inner = [f"{_shown(key)}: {_shown(part)}" for key, part in list(value.items())[:20]]
        return shortened(f"{{{', '.join(inner)}}}", 100)
    return shortened(str(value), 100)
