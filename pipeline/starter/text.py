"""Recipes with comments: plain values, what to say of them, and what could stand there instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfac_compress.pipeline.recipe.yaml_lines import write_yaml

_WIDTH = 90


@dataclass(frozen=True)
class Alternative:
    """A key that is commented out, in the form in which it could stand there.

    Args:
        key: Its name in the section; of a recipe for a key without a section.
        value: A value that a recipe may have.
        why: What for.
    """

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Commented:
    """What to say of one section.

    Args:
        name: Of the section.
        head: Lines above it.
        notes: What to say beside a key's value, which is then on one line.
        alternatives: Keys that are commented out.
    """

    name: str
    head: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    alternatives: Sequence[Alternative] = ()


def write_commented(
    head: Sequence[str], values: Mapping[str, Any], sections: Sequence[Commented]
) -> str:
    """Write a recipe.

    Args:
        head: Lines at the beginning.
        values: All that the recipe says.
        sections: What to say of it, in the order in which it is written. Values of other sections
            come after these.
    """
    named = {section.name for section in sections}
    others = [Commented(name) for name in values if name not in named]
    blocks = [_comments(head), *(_section(each, values) for each in (*sections, *others))]
    return "\n".join("".join(f"{line}\n" for line in block) for block in blocks if block)


def _section(section: Commented, values: Mapping[str, Any]) -> list[str]:
    value = values.get(section.name)
    lines = [*_comments(section.head)]
    if isinstance(value, Mapping):
        lines.append(f"{section.name}:")
        for key, inner in value.items():
            lines += [f"  {line}" for line in _key(key, inner, section.notes.get(key))]
    elif section.name in values:
        lines += _key(section.name, value, section.notes.get(section.name))
    inside = "  # " if isinstance(value, Mapping) else "# "
    for each in section.alternatives:
        line = write_yaml({each.key: each.value}, on_one_line=True).strip()[1:-1]
        lines.append(f"{inside}{line} # {each.why}")
    return lines


def _key(key: str, value: Any, note: str | None) -> list[str]:
    lines = write_yaml({key: value}).splitlines()
    if isinstance(value, Mapping) and not any(isinstance(v, Mapping) for v in value.values()):
        on_one = f"{key}: {write_yaml(value, on_one_line=True).strip()}"
        lines = [on_one] if len(on_one) <= _WIDTH else lines
    if note is None:
        return lines
    # A comment within text that goes over several lines would end it.
    return [f"{lines[0]} # {note}"] if len(lines) == 1 else [f"# {note}", *lines]


def _comments(lines: Sequence[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]
