"""Reading a recipe's file, writing a resolved one, and the JSON Schema for editors.

A file is read in this order: YAML, ``--set``, the schema of
:mod:`mfac_compress.pipeline.recipe.schema`. All that is wrong is reported at once.
"""

import copy
import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_regular
from mfac_compress.pipeline.quoting import shortened
from mfac_compress.pipeline.recipe.keys import file_schema
from mfac_compress.pipeline.recipe.messages import issues_of, report, show
from mfac_compress.pipeline.recipe.overrides import apply_override, parse_override
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.recipe.source import KeyPath, RecipeIssue, RecipeSource
from mfac_compress.pipeline.recipe.yaml_lines import (
    Document,
    YamlError,
    parse_yaml,
    write_yaml,
)

MAX_BYTES = 1_000_000
"""Largest recipe file. A larger file is a model or data, named by mistake."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file in UTF-8. Beside the sections of :class:`Recipe` it may hold ``folder``,
            where relative paths start (default: the file's own folder).
        overrides: ``key.path=value`` each, with a YAML value; the last counts.
    Returns:
        The recipe; ``recipe.source`` and ``recipe.where(key)`` know its folder and lines.
    Raises:
        InputError: If the file cannot be read or anything in it is wrong. The message has one line
            for each thing to fix, in the order of the file.
    """
    path = Path(path)
    document = _read(path)
    source = RecipeSource(folder=path.parent.resolve(), path=path, lines=document.lines)
    written, source, issues = _override(document.value, source, overrides)
    issues = [*document.issues, *issues]
    values = dict(written)
    source = _find_folder(values.pop("folder", None), source, issues)
    try:
        recipe = Recipe.model_validate(values, context=source)
    except ValidationError as error:
        issues += issues_of(error, values)
    if issues:
        raise InputError(report(issues, source))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe with every default filled in.

    Paths stay as they were written, and ``folder`` says in absolute terms where they start: so the
    text means the same wherever it is put, and a moved data set is one line to change.

    Args:
        recipe: From :func:`load_recipe` or made in Python.
    Returns:
        YAML text; read again from any folder it gives an equal recipe.
    """
    values = recipe.model_dump(mode="json", by_alias=True)
    return write_yaml({"folder": str(recipe.source.folder), **values})


def recipe_schema() -> dict[str, Any]:
    """Make the JSON Schema of a recipe's file, for editors.

    Returns:
        Draft 2020-12 schema with titles, descriptions, defaults and bounds, in which ``folder`` is
        a key.
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mfac-compress recipe",
    }
    return {**copy.deepcopy(file_schema()), **head}


def _read(path: Path) -> Document:
    """Read the file as far as one mapping of YAML."""
    try:
        check_regular(path, "The recipe")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(_no_such_file(path)) from error
    except OSError as error:
        raise InputError(f"The recipe must be readable. Got {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"The recipe must be a file. Got {str(path)!r}: {error}.") from error
    hint = "The recipe comes first on the command line, the model second."
    if len(content) > MAX_BYTES:
        raise InputError(
            f"The recipe must be a YAML file of at most 1 MB. Got {path}, which is larger. {hint}"
        )
    try:
        document = parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"The recipe must be YAML text in UTF-8. Got {path}, whose byte {error.start} is not. "
            f"{hint}"
        ) from error
    except YamlError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise InputError(f"The recipe must be YAML: {error}. ({place})") from error
    if document.value is None and not document.issues:
        raise InputError(f"The recipe must say at least data and prune. {path} is empty.")
    if not isinstance(document.value, dict):
        raise InputError(
            "The recipe must be a mapping of sections such as data and prune. "
            f"{path} holds {type(document.value).__name__} {show(document.value)}. {hint}"
        )
    return document


def _no_such_file(path: Path) -> str:
    text = f"The recipe must be a file that exists. Got {path}."
    if not path.parent.is_dir():
        return f"{text} There is no folder {path.parent}."
    recipes = [other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml")]
    near = difflib.get_close_matches(path.name, recipes, n=1)
    return f"{text} Did you mean {path.parent / near[0]}?" if near else text


def _override(
    recipe: dict[str, Any], source: RecipeSource, overrides: Sequence[str]
) -> tuple[dict[str, Any], RecipeSource, list[RecipeIssue]]:
    """Put in what ``--set`` gives; its keys lose their lines in the file."""
    lines, overridden, issues = dict(source.lines), set[KeyPath](), []
    for text in overrides:
        try:
            key, value = parse_override(text)
            recipe, key = apply_override(recipe, key, value)
        except ValueError as error:
            issues.append(RecipeIssue(("--set",), str(error), place=f"--set {shortened(text)}"))
            continue
        lines = {known: line for known, line in lines.items() if known[: len(key)] != key}
        overridden = {known for known in overridden if known[: len(key)] != key} | {key}
    source = dataclasses.replace(source, lines=lines, overridden=frozenset(overridden))
    return recipe, source, issues


def _find_folder(folder: Any, source: RecipeSource, issues: list[RecipeIssue]) -> RecipeSource:
    if folder is None:
        return source
    try:
        found = source.resolve(folder) if isinstance(folder, str) else None
    except (OSError, ValueError, RuntimeError):  # NUL, no such user, a loop of links
        found = None
    if found is None or not os.path.isdir(found):  # unlike Path's, False for a name too long
        text = f"must be a folder that exists: relative paths start there. Got {show(folder)}."
        issues.append(RecipeIssue(("folder",), text))
        return source
    return dataclasses.replace(source, folder=found)
