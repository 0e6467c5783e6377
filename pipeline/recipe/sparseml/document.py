"""The modifiers of a SparseML recipe: its YAML, stages, groups and variables, put in.

Tags such as ``!MFACPruningModifier`` are names and nothing else: no class is looked up, and nothing
is executed. Limits on size, depth and aliases are those of our own recipes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mfac_compress.pipeline.quoting import printable, shortened
from mfac_compress.pipeline.recipe.source import KeyPath, RecipeIssue
from mfac_compress.pipeline.recipe.sparseml.arithmetic import ArithmeticalError, evaluate, resolve
from mfac_compress.pipeline.recipe.yaml_lines import Document, Reader, YamlError, parse_yaml

_GROUP = "modifiers"
_TAG = re.compile(r"!([A-Za-z_]\w{0,99})", re.ASCII)
_FENCE = re.compile(r"\s*(---|\+\+\+)")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@dataclass(frozen=True)
class Modifier:
    """One modifier of a recipe.

    Args:
        name: Its class in SparseML.
        values: Its keys, variables put in.
        key: Where it stands: ``("pruning_modifiers", 0)``, with its stage before that.
        line: Line of its tag, counted from 1.
        lines: Key to the line of each.
    """

    name: str
    values: dict[str, Any]
    key: KeyPath
    line: int
    lines: dict[str, int] = field(default_factory=dict)

    def line_of(self, key: str) -> int:
        """Line of a key, or of the modifier where the recipe does not give it."""
        return self.lines.get(key, self.line)


@dataclass
class _Tagged:
    """A mapping below a tag."""

    name: str
    values: dict[str, Any]


def is_sparseml(value: Any, path: Path) -> bool:
    """Whether what a file holds is meant as a recipe of SparseML.

    Args:
        value: Its plain values as our own recipes are read.
        path: Of the file.
    Returns:
        True for Markdown, a list of tags, and a mapping with groups of modifiers, also within
        stages: no recipe of ours is any of these.
    """
    if is_markdown(path) or (isinstance(value, list) and all(item is None for item in value)):
        return True
    return isinstance(value, dict) and (_has_groups(value) or any(map(_has_groups, value.values())))


def is_markdown(path: Path) -> bool:
    """Whether a file is Markdown, by its name."""
    return path.suffix.lower() == ".md"


def front_matter(text: str) -> str:
    """Take the YAML out of Markdown: what stands between two lines of ``---`` or ``+++``.

    Args:
        text: Markdown.
    Returns:
        The YAML, with empty lines before it, so that its lines keep their numbers.
    Raises:
        YamlError: If there is none.

    >>> front_matter("# A recipe\\n---\\nmodifiers: []\\n---\\nMore words.")
    '\\n\\nmodifiers: []'
    """
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    if len(fences) < 2:
        raise YamlError("Markdown must hold the recipe between two lines of ---")
    first, second = fences[:2]
    return "\n".join(["" if number <= first else lines[number] for number in range(second)])


def read_modifiers(text: str) -> tuple[list[Modifier], Document]:
    """Read all modifiers, in the order of the file.

    Args:
        text: YAML.
    Returns:
        Modifiers, and the document with the lines of all keys and with what is wrong: tags that are
        no modifier's, expressions that have no value, lists under other names.
    Raises:
        YamlError: If it is not YAML, or too large.
    """
    document = parse_yaml(text, reader=_Reader)
    value = document.value
    if isinstance(value, list):
        value = {_GROUP: value}
        document.lines = {(_GROUP, *path): line for path, line in document.lines.items()}
    if not isinstance(value, dict):
        document.issues.append(RecipeIssue((), "must be a mapping with groups of modifiers."))
        return [], document
    modifiers = list(_of_recipe(value, document))
    if not modifiers and not document.issues:
        text = "must list modifiers below a key such as pruning_modifiers. It has none."
        document.issues.append(RecipeIssue((), text))
    return modifiers, document


class _Reader(Reader):
    """Reads tags of modifiers; numbers may be keys, as in ``num_grads: {0.0: 64}``."""

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        tag = _TAG.fullmatch(node.tag)
        if tag is None:
            return super().read(node, path)
        if isinstance(node, yaml.MappingNode):
            return _Tagged(tag[1], self.mapping(node, path))
        if isinstance(node, yaml.ScalarNode) and not node.value:
            return _Tagged(tag[1], {})
        self.note(path, node, f"must be a modifier with keys below it. Got {shortened(tag[0])}.")
        return None

    def is_key(self, node: yaml.Node, path: KeyPath) -> bool:
        return node.tag in _NUMBERS or super().is_key(node, path)


def _has_groups(value: Any) -> bool:
    return isinstance(value, dict) and any(_GROUP in key for key in value)


def _of_recipe(value: dict[str, Any], document: Document) -> Iterator[Modifier]:
    """Modifiers of a recipe; of its stages, where it has no groups of its own."""
    stages = {name: part for name, part in value.items() if _has_groups(part)}
    if _has_groups(value) or not stages:
        yield from _of_stage(value, (), {}, document)
        return
    shared = {name: part for name, part in value.items() if name not in stages}
    for name, stage in stages.items():
        yield from _of_stage(stage, (name,), shared, document)


def _of_stage(
    stage: dict[str, Any], within: KeyPath, shared: dict[str, Any], document: Document
) -> Iterator[Modifier]:
    groups = {name: part for name, part in stage.items() if _GROUP in name}
    own = {name: part for name, part in stage.items() if name not in groups}
    for name, part in own.items():
        _refuse_modifiers(part, (*within, name), document)
    try:
        variables = resolve({**shared, **own})
    except ArithmeticalError as error:
        document.issues.append(_issue(within, f"must have variables with a value: {error}."))
        return
    for name, group in groups.items():
        if not isinstance(group, list):
            text = "must be a list of modifiers, each with its tag."
            document.issues.append(_issue((*within, name), text))
            continue
        for position, part in enumerate(group):
            key = (*within, name, position)
            if isinstance(part, _Tagged):
                yield _modifier(part, key, variables, document)
            else:
                text = "must be a modifier: a tag such as !EpochRangeModifier with keys below it."
                document.issues.append(_issue(key, text))


def _modifier(
    part: _Tagged, key: KeyPath, variables: dict[str, Any], document: Document
) -> Modifier:
    values = {}
    for name, value in part.values.items():
        _refuse_modifiers(value, (*key, name), document)
        try:
            values[name] = evaluate(value, variables)
        except ArithmeticalError as error:
            document.issues.append(_issue((*key, name), f"must have a value: {error}."))
            values[name] = None
    lines = document.lines
    known = {name: lines[(*key, name)] for name in values if (*key, name) in lines}
    return Modifier(part.name, values, key, lines.get(key, 1), known)


def _refuse_modifiers(value: Any, key: KeyPath, document: Document) -> None:
    """Tags where no modifier can be: SparseML would not read them either."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, _Tagged):
            text = f"must not hold a modifier. Got !{part.name}. Put it into a list of modifiers."
            document.issues.append(_issue(key, text))
            return
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _issue(key: KeyPath, text: str) -> RecipeIssue:
    return RecipeIssue(key, printable(text))
