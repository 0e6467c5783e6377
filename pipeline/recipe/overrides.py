"""Values given beside the file: ``--set key.path=value``."""

import re
from typing import Any

from mfac_compress.pipeline.quoting import shortened
from mfac_compress.pipeline.recipe.source import KeyPath
from mfac_compress.pipeline.recipe.yaml_lines import MAX_DEPTH, YamlError, parse_yaml

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """Read one ``key.path=value``.

    Args:
        text: Key path and value. The value is YAML: ``0.9``, ``true``, ``[1, 2]``, ``null``.
    Returns:
        Key path (all parts text) and value.
    Raises:
        ValueError: If the text has another form; the message is a sentence on what ``--set`` must
            be.
    """
    name, equals, written = text.partition("=")
    name = name.strip()
    if not equals:
        raise ValueError("must be key.path=value, for example prune.sparsity=0.9. It has no '='.")
    if not _KEY.fullmatch(name):
        raise ValueError(
            f"must start with names joined by dots. Got {shortened(name)!r}. A pattern is "
            "set with the whole mapping: 'prune.overrides={layer1.*: 0.5}'."
        )
    key = tuple(name.split("."))
    if len(key) > MAX_DEPTH:
        raise ValueError(f"must have a key of at most {MAX_DEPTH} names. Got {len(key)}.")
    if not written.strip():
        raise ValueError("must have a value after '='. Write null or '' for none.")
    try:
        document = parse_yaml(written, within=key)
    except YamlError as error:
        raise ValueError(
            f"must have a YAML value after '='. Got {shortened(written)!r}: {error}."
        ) from error
    if document.issues:
        raise ValueError(f"must have a plain value: it {document.issues[0].text}")
    return key, document.value


def apply_override(recipe: Any, key: KeyPath, value: Any) -> tuple[Any, KeyPath]:
    """Put a value in, making the sections on the way that are missing.

    Args:
        recipe: Plain values. Not changed.
        key: Key path, all parts text; a number counts as a position where a list stands.
        value: The value to put there.
    Returns:
        The recipe with the value, and the key path with positions as numbers.
    Raises:
        ValueError: If the way leads through a value that is no section, or past the end of a list;
            the message is a sentence on what ``--set`` must be.
    """
    return _put(recipe, (), key, value)


def _put(around: Any, done: KeyPath, rest: KeyPath, value: Any) -> tuple[Any, KeyPath]:
    if not rest:
        return value, done
    part, *below = rest
    if isinstance(around, list):
        position = next((i for i in range(len(around)) if str(i) == part), None)
        if position is None:
            raise ValueError(
                f"must name a position of the list {_dotted(done)}, 0 to {len(around) - 1}. "
                f"Got {shortened(part)!r}. Set the whole list: '{_dotted(done)}=[...]'."
            )
        inner, key = _put(around[position], (*done, position), tuple(below), value)
        return [inner if i == position else old for i, old in enumerate(around)], key
    if around is not None and not isinstance(around, dict):
        raise ValueError(
            f"must lead through sections. {_dotted(done)} is {shortened(repr(around))}. "
            f"Set {_dotted(done)} itself."
        )
    sections = around or {}
    inner, key = _put(sections.get(part), (*done, part), tuple(below), value)
    return {**sections, part: inner}, key


def _dotted(key: KeyPath) -> str:
    return ".".join(shortened(str(part)) for part in key)
