"""Reading a recipe's file, writing a resolved one, and the JSON Schema for editors.

A file is read in this order: YAML, ``--set``, the schema of
:mod:`mfac_compress.pipeline.recipe.schema`. All that is wrong is reported at once. A recipe of
SparseML is translated in between, before ``--set``.
"""

import copy
import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from mfac_compress.pipeline.recipe.sparseml.document import (
    front_matter,
    is_markdown,
    is_sparseml,
    read_modifiers,
)
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Finding, Translation
from mfac_compress.pipeline.recipe.sparseml.translate import translate
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
            where relative paths start (default: the file's own folder). Or a recipe of SparseML,
            which needs ``data`` among the overrides.
        overrides: ``key.path=value`` each, with a YAML value; the last counts.
    Returns:
        The recipe; ``recipe.source`` and ``recipe.where(key)`` know its folder and lines.
    Raises:
        InputError: If the file cannot be read or anything in it is wrong. The message has one line
            for each thing to fix, in the order of the file.
    """
    return check_values(*with_overrides(read_file(path), overrides))


@dataclass(frozen=True)
class Written:
    """What a recipe's file holds, before it is checked.

    Args:
        document: Its values, which are a mapping, with lines and issues.
        path: Of the file.
        findings: What became of each line of a SparseML recipe; None for one of ours.
    """

    document: Document
    path: Path
    findings: tuple[Finding, ...] | None = None


def read_file(path: str | Path, *, allow_dropped: bool = False) -> Written:
    """Read a recipe's file as far as its values.

    Args:
        path: YAML in UTF-8; one of SparseML's may be Markdown.
        allow_dropped: Whether what has no counterpart in a recipe of SparseML may be left out.
    Raises:
        InputError: If it cannot be read, or is no mapping, or is a SparseML recipe in which
            something is wrong.
    """
    path = Path(path)
    text = _text(path)
    document = _parsed(text, path)
    if not is_sparseml(document.value, path):
        return Written(_mapping(document, path), path)
    modifiers, document = read_modifiers(text)
    issues = document.issues
    translation, found = translate(modifiers) if not issues else (Translation(), [])
    unmet = {Fate.REFUSED} if allow_dropped else {Fate.REFUSED, Fate.DROPPED}
    issues += [*found, *_unmet(translation.findings, unmet)]
    if issues:
        raise InputError(report(issues, RecipeSource(path=path, lines=document.lines)))
    document = Document(translation.values, translation.lines)
    return Written(document, path, tuple(translation.findings))


def with_overrides(
    written: Written, overrides: Sequence[str]
) -> tuple[dict[str, Any], RecipeSource, list[RecipeIssue]]:
    """Put in what ``--set`` gives.

    Args:
        written: Of a file.
        overrides: ``key.path=value`` each; the last counts.
    Returns:
        Values, where they come from, and what is wrong so far.
    """
    document, path = written.document, written.path
    remarks = [str(found) for found in written.findings or () if found.fate is Fate.NEARLY]
    source = RecipeSource(
        folder=path.parent.resolve(),
        path=path,
        lines=document.lines,
        remarks=tuple(remarks),
    )
    values, source, issues = _override(document.value, source, overrides)
    issues = [*document.issues, *issues]
    if written.findings is not None and "data" not in values:
        text = (
            "must be given: a recipe of SparseML names neither data nor model. Use --set, as in "
            "--set data.source=image_folder --set data.path=PATH --set model.factory=NET.PY:NET, "
            f"or write a recipe of ours once, and edit it: mfac-compress recipe import {path} -o "
            "NEW.yaml."
        )
        issues.append(RecipeIssue(("data",), text))
    return values, source, issues


def check_values(values: dict[str, Any], source: RecipeSource, issues: list[RecipeIssue]) -> Recipe:
    """Check the values of a recipe against the schema.

    Args:
        values: As a file writes them, ``folder`` among them.
        source: Where they come from.
        issues: What is wrong with them already.
    Returns:
        The recipe.
    Raises:
        InputError: If anything is wrong.
    """
    values, issues = dict(values), list(issues)
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


_HINT = "The recipe comes first on the command line, the model second."


def _text(path: Path) -> str:
    """Read a file's YAML; of Markdown, what stands before the words."""
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
    if len(content) > MAX_BYTES:
        raise InputError(
            f"The recipe must be a YAML file of at most 1 MB. Got {path}, which is larger. {_HINT}"
        )
    try:
        text = content.decode("utf-8-sig")
        return front_matter(text) if is_markdown(path) else text
    except UnicodeDecodeError as error:
        raise InputError(
            f"The recipe must be YAML text in UTF-8. Got {path}, whose byte {error.start} is not. "
            f"{_HINT}"
        ) from error
    except YamlError as error:
        raise InputError(f"The recipe must be YAML: {error}. ({path})") from error


def _parsed(text: str, path: Path) -> Document:
    try:
        return parse_yaml(text)
    except YamlError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise InputError(f"The recipe must be YAML: {error}. ({place})") from error


def _mapping(document: Document, path: Path) -> Document:
    """A document that is one mapping, or an error."""
    if document.value is None and not document.issues:
        raise InputError(f"The recipe must say at least data and prune. {path} is empty.")
    if not isinstance(document.value, dict):
        raise InputError(
            "The recipe must be a mapping of sections such as data and prune. "
            f"{path} holds {type(document.value).__name__} {show(document.value)}. {_HINT}"
        )
    return document


def _unmet(findings: Sequence[Finding], fates: set[Fate]) -> Iterator[RecipeIssue]:
    """Lines of a SparseML recipe for which nothing stands."""
    for found in findings:
        if found.fate not in fates:
            continue
        advice = ""
        if found.fate is Fate.DROPPED:
            advice = " To leave it out: mfac-compress recipe import --allow-dropped."
        text = f"has no counterpart: {found.text}.{advice}"
        if found.fate is Fate.REFUSED:
            text = f"cannot be translated: {found.text}."
        yield RecipeIssue(found.key, text, found.line)


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
