"""What a recipe's keys are and may hold, in words, read from the JSON Schema of the recipe.

So bounds and choices are said once, in :mod:`mfac_compress.pipeline.recipe.schema`.
"""

import difflib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.recipe.source import KeyPath, key_name

Schema = dict[str, Any]

FILE_KEYS: Schema = {
    "folder": {
        "type": "string",
        "minLength": 1,
        "title": "Folder",
        "description": "Where relative paths start, seen from the recipe's own folder. Default: "
        "there.",
        "default": ".",
    },
}
"""Keys that a recipe's file has and a :class:`Recipe` has not: they are gone once it is read."""


@cache
def file_schema() -> Schema:
    """The JSON Schema of a recipe's file: pydantic's, with ``FILE_KEYS``."""
    schema = Recipe.model_json_schema()
    return {**schema, "properties": {**FILE_KEYS, **schema["properties"]}}


ABSENT = object()
"""Stands for the value of a key that is not there."""


def child(value: Any, part: str | int) -> Any:
    """Take a value out of a mapping or list.

    Args:
        value: Plain value, or ``ABSENT``.
        part: Key or position.
    Returns:
        The value there, or ``ABSENT``.
    """
    if isinstance(value, dict):
        return value.get(part, ABSENT)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return ABSENT


def schema_at(key: KeyPath, recipe: Any) -> Schema:
    """Find the schema of a key.

    Args:
        key: Key path.
        recipe: The plain values around it: they say which source ``data`` has.
    Returns:
        The schema, references followed; empty where the key may hold anything or is not known.
    """
    schema = _follow(file_schema(), recipe)
    for part in key:
        recipe = child(recipe, part)
        if isinstance(part, int):
            prefix = schema.get("prefixItems", [])
            inner = prefix[part] if part < len(prefix) else schema.get("items", {})
        else:
            inner = schema.get("properties", {}).get(part, schema.get("additionalProperties"))
        schema = _follow(inner, recipe) if isinstance(inner, dict) else {}
    return schema


def _follow(schema: Schema, value: Any) -> Schema:
    """Follow references, and for a section the branch that ``value`` is meant as."""
    for wrapper in (schema, *schema.get("allOf", [])):
        if "$ref" in wrapper:
            target = file_schema()["$defs"][wrapper["$ref"].rpartition("/")[2]]
            # What stands beside the reference (default, description) counts for this key.
            beside = {k: v for k, v in schema.items() if k not in ("$ref", "allOf")}
            return _follow({**target, **beside}, value)
    if "discriminator" in schema and isinstance(value, dict):
        mapping = schema["discriminator"]["mapping"]
        source = value.get("source", "factory" if "factory" in value else None)
        if isinstance(source, str) and source in mapping:
            return _follow({"$ref": mapping[source]}, value)
        return {"properties": {"source": {"enum": list(mapping)}}}
    if isinstance(value, (dict, list)):
        wanted = "properties" if isinstance(value, dict) else "prefixItems"
        for branch in _branches(schema):
            inner = _follow(branch, value)
            if wanted in inner:
                return inner
    return schema


def _branches(schema: Schema) -> list[Schema]:
    """The forms that a key's value may have, where there are several."""
    return schema.get("anyOf", schema.get("oneOf", []))


def is_section(name: str | int) -> bool:
    """Whether a name is that of a section's class, which pydantic has in paths and keys have not.

    Args:
        name: Part of the location of an error.
    """
    return name in file_schema()["$defs"]


def choices(schema: Schema) -> list[str]:
    """List the words that a schema accepts.

    Args:
        schema: Of one key.
    Returns:
        The words, none for a key that takes numbers or free text.
    """
    # Older releases of pydantic write a constant as an enumeration beside it.
    words = [schema["const"]] if "const" in schema else schema.get("enum", [])
    words = [str(word).lower() if isinstance(word, bool) else word for word in words]
    return words + [word for branch in _branches(schema) for word in choices(branch)]


def takes_list(schema: Schema) -> bool:
    """Whether a key holds a list."""
    return schema.get("type") == "array" or any(map(takes_list, _branches(schema)))


def takes_only_text(schema: Schema) -> bool:
    """Whether text is the only value, beside null, that a key can hold."""
    branches = [branch for branch in _branches(schema) or [schema] if branch != {"type": "null"}]
    return all(branch.get("type") == "string" for branch in branches)


def describe(schema: Schema) -> str:
    """Say what a schema accepts.

    Args:
        schema: Of one key.
    Returns:
        Words that go after "must be": ``a number of at least 0 and below 1``.
    """
    if "discriminator" in schema:
        sources = ", ".join(schema["discriminator"]["mapping"])
        return f"a section with source: one of {sources}"
    words = choices({k: v for k, v in schema.items() if k not in ("anyOf", "oneOf")})
    if words:
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if _branches(schema):
        branches = [describe(_follow(branch, None)) for branch in _branches(schema)]
        return " or ".join(dict.fromkeys(branches))
    kinds = {
        "array": _describe_list,
        "object": _describe_mapping,
        "string": _describe_text,
        "number": lambda schema: f"a number{_bounds(schema)}",
        "integer": lambda schema: f"a whole number{_bounds(schema)}",
        "boolean": lambda _: "true or false",
        "null": lambda _: "null",
    }
    if schema.get("type") in kinds:
        return kinds[schema["type"]](schema)
    return "text, a number, true, false, null, or a list or mapping of these"


def _bounds(schema: Schema) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {schema[name]:,.10g}" for name, word in words.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def _describe_text(schema: Schema) -> str:
    if "examples" in schema:
        return f"text like {' or '.join(schema['examples'])}"
    if "maxLength" in schema:
        return f"text of 1 to {schema['maxLength']:,} characters"
    return "text that is not empty" if schema.get("minLength") else "text"


def _describe_list(schema: Schema) -> str:
    items = schema.get("prefixItems") or [schema.get("items", {})]
    length = "a list"
    if "prefixItems" in schema:
        length = f"a list of {len(items)}"
    elif "maxItems" in schema:
        length = f"a list of {schema.get('minItems', 0)} to {schema['maxItems']:,}"
    elif schema.get("minItems"):
        length = "a list of one or more"
    return f"{length} in which each is {describe(_follow(items[0], None))}"


def _describe_mapping(schema: Schema) -> str:
    if "properties" in schema:
        required = schema.get("required", [])
        return f"a section with at least {' and '.join(required)}" if required else "a section"
    values = schema.get("additionalProperties")
    if isinstance(values, dict) and (values := _follow(values, None)):
        most = f"at most {schema['maxProperties']:,} " if "maxProperties" in schema else ""
        return f"a mapping of {most}names to {describe(values)}"
    return "a mapping of names to values"


def nearest(name: str | int, known: Iterable[str | int], cutoff: float = 0.7) -> str | None:
    """Find the name that another may be a misspelling of.

    Args:
        name: As written.
        known: Names to choose from.
        cutoff: Least similarity, 1 for equal.
    Returns:
        The most similar name, None where none is similar enough.
    """
    near = difflib.get_close_matches(str(name), map(str, known), n=1, cutoff=cutoff)
    return near[0] if near else None


_VARS_ARE_GONE = (
    "is not a key of a recipe any more, and ${name} stands for nothing. Write each value where it "
    "is used, or use YAML's anchors (&name, *name). data.folder says where the data is; "
    "--set data.folder=PATH gives another place."
)


def unknown_key_message(key: KeyPath, recipe: Any) -> str:
    """Say that a key is not known, and which one may be meant.

    Args:
        key: Key path.
        recipe: The plain values around it.
    Returns:
        A sentence whose subject is the key.
    """
    if key == ("vars",):
        return _VARS_ARE_GONE
    *section, name = key
    name = str(name)
    own = list(schema_at(tuple(section), recipe).get("properties", {}))
    sources = [source for path, source in _all_keys() if path == key and source]
    if sources:
        return f"is only a key of data with source: {' or '.join(sources)}. Remove it."
    near = nearest(name, own)
    if near:
        return f"is not a key of a recipe. Did you mean {key_name((*section, near))}?"
    others: dict[str, list[str]] = {}
    for path, _ in _all_keys():
        others.setdefault(str(path[-1]), []).append(key_name(path))
    near = nearest(name, others, cutoff=0.85)
    if near:
        meant = " or ".join(dict.fromkeys(others[near]))
        return f"is not a key of a recipe. Did you mean {meant}?"
    where = key_name(tuple(section)) or "A recipe"
    return f"is not a key of a recipe. {where} has {', '.join(own)}."


@cache
def _all_keys() -> tuple[tuple[KeyPath, str | None], ...]:
    """Every key path of a recipe, with the source of ``data`` that it needs."""
    return tuple(_keys_below(file_schema(), (), None))


def _keys_below(
    schema: Schema, section: KeyPath, source: str | None
) -> Iterator[tuple[KeyPath, str | None]]:
    if "discriminator" in schema:
        for name, reference in schema["discriminator"]["mapping"].items():
            yield from _keys_below(_follow({"$ref": reference}, None), section, name)
        return
    for branch in _branches(schema):
        yield from _keys_below(_follow(branch, None), section, source)
    for name, inner in schema.get("properties", {}).items():
        yield (*section, name), source
        yield from _keys_below(_follow(inner, None), (*section, name), source)
