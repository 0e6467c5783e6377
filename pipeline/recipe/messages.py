"""What is wrong with a recipe, in words: one issue a key, all of them in one message."""

import difflib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from mfac_compress.pipeline.quoting import shortened
from mfac_compress.pipeline.recipe import keys
from mfac_compress.pipeline.recipe.section import SectionError
from mfac_compress.pipeline.recipe.source import KeyPath, RecipeIssue, RecipeSource, key_name

_MOST_REPORTED = 50  # issues that one message lists
_MOST_READ = 500  # of pydantic's errors, several of which may be one issue


def report(issues: Iterable[RecipeIssue], source: RecipeSource) -> str:
    """Write issues as one message, in the order of their lines.

    Args:
        issues: At least one. Of several of one key, the first is reported.
        source: Says where each key is.
    Returns:
        One line for one issue; else a head line and one line each. Issues without a line come
        after those with one, those of ``--set`` last.
    """
    first_of_key: dict[Any, RecipeIssue] = {}
    for issue in issues:
        # Issues with a place of their own are not about a key of the file.
        first_of_key.setdefault(issue.place or issue.key, issue)
    reported = sorted(first_of_key.values(), key=lambda issue: _order(issue, source))
    sentences = [_sentence(issue, source) for issue in reported[:_MOST_REPORTED]]
    if len(sentences) == 1:
        return sentences[0]
    count = str(len(reported)) if len(reported) <= _MOST_REPORTED else f"more than {_MOST_REPORTED}"
    head = f"{source.path or 'The recipe'}: {count} errors:"
    return "\n".join([head, *(f"- {sentence}" for sentence in sentences)])


def _order(issue: RecipeIssue, source: RecipeSource) -> tuple[int, int]:
    line = issue.line or source.line(issue.key)
    from_outside = issue.place or source.place(issue.key).startswith("--set ")
    if line is not None and not issue.place:
        return (0, line)
    return (2 if from_outside else 1, 0)


def _sentence(issue: RecipeIssue, source: RecipeSource) -> str:
    place = issue.place or source.place(issue.key)
    if issue.line and source.path:
        place = f"{source.path}:{issue.line}"
    name = key_name(issue.key) or "The recipe"
    return f"{name} {issue.text} ({place})" if place else f"{name} {issue.text}"


def issues_of(error: ValidationError, recipe: Any) -> list[RecipeIssue]:
    """Rephrase what pydantic found.

    Args:
        error: Of validating ``recipe``.
        recipe: The plain values that were validated.
    Returns:
        Issues; where pydantic gives one for each way a value could be meant, several have the
        same key and the same text.
    """
    errors = error.errors(include_url=False)[:_MOST_READ]
    located = [(found, _key_path(found, recipe)) for found in errors]
    return [
        issue
        for found, key in located
        # A list whose items are wrong counts as too short as well: the items say it better.
        if not (found["type"] == "too_short" and any(_is_below(other, key) for _, other in located))
        if not (found["type"] == "missing" and _is_misspelt(key, located))
        for issue in _rephrase(found, key, recipe)
    ]


def _is_misspelt(missing: KeyPath, located: list[tuple[Any, KeyPath]]) -> bool:
    """Whether a key beside the missing one, not known, is meant as it: one issue, not two."""
    return any(
        found["type"] == "extra_forbidden"
        and key[:-1] == missing[:-1]
        and keys.nearest(key[-1], missing[-1:])
        for found, key in located
    )


def _is_below(key: KeyPath, section: KeyPath) -> bool:
    return len(key) > len(section) and key[: len(section)] == section


def _key_path(found: Any, recipe: Any) -> KeyPath:
    """Leave out of pydantic's location what is not a key: names of types and of variants."""
    key: KeyPath = ()
    value = recipe
    parts = list(found["loc"])
    if parts[:1] == ["data"] and len(parts) > 1:
        del parts[1]  # the source
    for position, part in enumerate(parts):
        if keys.child(value, part) is keys.ABSENT and keys.is_section(part):
            continue  # which form of a key is meant
        value = keys.child(value, part)
        absent = value is keys.ABSENT
        missing = found["type"] == "missing" and position == len(parts) - 1
        # In a list that is too short, the list is the key to fix.
        if absent and (not missing or isinstance(part, int)):
            break
        key = (*key, part)
    return key


def _rephrase(found: Any, key: KeyPath, recipe: Any) -> Iterator[RecipeIssue]:
    kind = found["type"]
    cause = found.get("ctx", {}).get("error")
    if isinstance(cause, SectionError):
        for issue in cause.issues:
            yield RecipeIssue((*key, *issue.key), issue.text)
    elif kind == "extra_forbidden":
        yield RecipeIssue(key, keys.unknown_key_message(key, recipe))
    elif kind.startswith("union_tag"):
        yield RecipeIssue((*key, "source"), _must_be((*key, "source"), recipe))
    else:
        yield RecipeIssue(key, _must_be(key, recipe))


def _must_be(key: KeyPath, recipe: Any) -> str:
    schema = keys.schema_at(key, recipe)
    value = functools.reduce(keys.child, key, recipe)
    must = f"must be {keys.describe(schema)}."
    if value is keys.ABSENT:
        return f"{must} It is missing. Add it."
    advice = ""
    words = keys.choices(schema)
    near = isinstance(value, str) and difflib.get_close_matches(value, words, n=1, cutoff=0.7)
    default = schema.get("default")
    if near:
        advice = f" Did you mean {near[0]}?"
    elif keys.takes_list(schema) and isinstance(value, (str, int, float)):
        advice = f" Write [{show(value)}]."
    elif not words and keys.takes_only_text(schema) and isinstance(value, (int, float)):
        advice = f" Write '{show(value)}' in quotes."
    elif value is None:
        advice = " Give it a value" + (", or leave the key out." if "default" in schema else ".")
    elif isinstance(default, (str, int, float)):
        advice = f" The default is {show(default, quotes=False)}."
    return f"{must} Got {show(value)}.{advice}"


def show(value: Any, *, quotes: bool = True) -> str:
    """Write a value as messages do: YAML's words, short.

    Args:
        value: Plain value.
        quotes: Whether text gets quotes.
    Returns:
        At most some 60 characters.
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"a mapping with {', '.join(map(str, value))}"[:60] if value else "an empty mapping"
    if isinstance(value, list):
        items = ("..." if isinstance(v, (list, dict)) else show(v) for v in value[:60])
        text = f"[{', '.join(items)}]"
    else:
        text = repr(value) if quotes else str(value)
    return shortened(text, 60)
