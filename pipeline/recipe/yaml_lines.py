"""Reading YAML into plain values with the line of every key, and writing it.

Only what JSON knows too: text, numbers, true and false, null, lists, mappings with text keys. A
whole number is a key, read as its text, where it names an axis of an input, below
``export.dynamic_axes.INPUT``, and any number where it is a sparsity, below
``calibrate.num_gradients``. Two readings differ from PyYAML's: ``1e-5`` is a number, as in YAML
1.2 and everywhere else, and ``2024-01-31`` is text. Numbers that YAML 1.1 and 1.2 read differently
(``0777``, ``1:30``) are refused, and so are whole numbers beyond 64 bits, which neither tensors nor
JSON readers hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import yaml

from mfac_compress.pipeline.quoting import shortened
from mfac_compress.pipeline.recipe.source import KeyPath, RecipeIssue

MAX_VALUES = 20_000
"""Most values of a document, aliases written out."""
MAX_DEPTH = 40
"""Most levels of a document."""

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {_PREFIX + name for name in ("str", "int", "float", "bool", "null")}
_MERGE = _PREFIX + "merge"
_BY_AXIS, _BY_SPARSITY = ("export", "dynamic_axes"), ("calibrate", "num_gradients")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)")
_LONGEST_INTEGER = 80  # 64 bits written with `0b` and underscores; int() of far more digits fails


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way to say it
        start: [(tag, pattern) for tag, pattern in resolvers if tag != _PREFIX + "timestamp"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Stop at the limits while the text is read: a megabyte takes ten seconds to the end."""
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._nodes > MAX_VALUES:
            raise YamlError(f"it must hold at most {MAX_VALUES:,} values")
        if self._depth > MAX_DEPTH:
            raise YamlError(f"it must have at most {MAX_DEPTH} levels", self.line + 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.add_implicit_resolver(
    _PREFIX + "float",
    re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    # The same as in reading, so that text which looks like a number is quoted.
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flat = not any(isinstance(value, (list, dict)) for value in values)
    return dumper.represent_sequence(_PREFIX + "seq", values, flow_style=flat)


_Dumper.add_representer(list, _represent_list)


class YamlError(ValueError):
    """Text that is not YAML. ``line`` counts from 1, None where it is not known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Document:
    """A YAML text, read.

    Attributes:
        value: Plain values, a tree: no object stands in it twice.
        lines: Line of every key and list item, counted from 1.
        issues: Repeated keys, keys that are not text, tags.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    issues: list[RecipeIssue] = field(default_factory=list)


def parse_yaml(text: str, within: KeyPath = (), reader: "type[Reader] | None" = None) -> Document:
    """Read a YAML text.

    Args:
        text: One YAML document; anchors, aliases and merge keys work.
        within: Key of the recipe whose value it is; empty for a whole recipe.
        reader: What builds the values. Default: :class:`Reader`.
    Returns:
        Values, lines and issues. An empty text is None.
    Raises:
        YamlError: If the text is not one YAML document, or is too large or deep written out.
    """
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(_explain(error), mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"character #x{error.character:02x} is not allowed", line) from error
    document = Document()
    if root is not None:
        _hold_size(root)
        document.value = (reader or Reader)(document, within).read(root, ())
    return document


def write_yaml(value: Any, *, on_one_line: bool = False) -> str:
    """Write plain values so that :func:`parse_yaml` reads them again.

    Args:
        value: Text, numbers, booleans, None, lists and dicts with text keys.
        on_one_line: Whether lists and dicts stand in brackets, however long that is.
    Returns:
        YAML text; keys in the order of the dicts.
    """
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=on_one_line,
        width=inf if on_one_line else 100,
    )


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        return f"{problem}. Indent with spaces, not tabs"
    if "single document" in str(error):
        return "it must be one document. Remove the second '---'"
    if "mapping values are not allowed" in problem:
        return f"{problem}. Check the indentation, and put text that holds ': ' in quotes"
    return f"{problem} ({error.context})" if error.context else problem


def _hold_size(root: yaml.Node) -> None:
    """Refuse aliases that multiply, or that hold themselves, before anything is built."""
    waiting, count = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise YamlError(f"it must hold at most {MAX_VALUES:,} values, aliases written out")
        if depth > MAX_DEPTH:
            raise YamlError(
                f"it must have at most {MAX_DEPTH} levels. An alias may hold itself",
                node.start_mark.line + 1,
            )
        if isinstance(node, yaml.MappingNode):
            waiting.extend((part, depth + 1) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend((item, depth + 1) for item in node.value)


class Reader:
    """Build the plain values of a node tree, noting lines and issues in the document.

    Args:
        document: Gets lines and issues.
        within: Key of the recipe whose value it is.
    """

    def __init__(self, document: Document, within: KeyPath) -> None:
        self._loader = _Loader("")
        self._document, self._within = document, within
        self._noted: set[int] = set()

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        """Give the plain value of a node that stands at a path of the document."""
        if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
            for position, item in enumerate(node.value):
                self._document.lines[(*path, position)] = item.start_mark.line + 1
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """Give the entries of a mapping, whatever its tag is."""
        values = {}
        for key, (key_node, value_node) in self._entries(node, path).items():
            self._document.lines[(*path, key)] = key_node.start_mark.line + 1
            values[key] = self.read(value_node, (*path, key))
        return values

    def is_key(self, node: yaml.Node, path: KeyPath) -> bool:
        """Whether a node is a key of the mapping at a path: text, or a number where it is one."""
        section = (*self._within, *path)
        if section == _BY_SPARSITY and node.tag in (_PREFIX + "int", _PREFIX + "float"):
            return True
        numbered = section[:2] == _BY_AXIS and len(section) == 3
        number = node.tag == _PREFIX + "int" and str(node.value).isdecimal()
        return node.tag == _PREFIX + "str" or (numbered and number)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        if node.tag not in _SCALARS:
            tag = node.tag.replace(_PREFIX, "!!")[:40]
            self.note(path, node, f"must be without a YAML tag. Got {tag}. Put text in quotes.")
            return None
        kind, written = node.tag.removeprefix(_PREFIX), str(node.value)
        refusal = _refusal(kind, written) if isinstance(node, yaml.ScalarNode) else None
        try:
            value = self._loader.construct_object(node)
        # What PyYAML's constructors raise for text that is not of their kind.
        except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
            value, refusal = None, refusal or f"must be what !!{kind} says."
        if refusal is None and isinstance(value, int) and not -(2**63) <= value < 2**63:
            refusal = "must be a whole number of at most 64 bits."
        if refusal:
            got = shortened(written, 40)
            self.note(path, node, f"{refusal} Got {got!r}.")
            return None
        return value

    def _entries(
        self, node: yaml.MappingNode, path: KeyPath
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> (key node, value node), merge keys followed; own keys win, then earlier merges."""
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for base in self._bases(value_node, path):
                    merged = {**self._entries(base, path), **merged}
                continue
            if not self.is_key(key_node, path):
                self.note(path, key_node, f"must have text as keys. Got {_key_text(key_node)}.")
                continue
            key = key_node.value
            if refusal := _refusal("str", key):
                self.note(path, key_node, f"must have keys that can be read. One {refusal}")
                continue
            if key in own:
                first = own[key][0].start_mark.line + 1
                text = f"must be given once. It is in line {first} already. Remove one."
                self.note((*path, key), key_node, text)
            own[key] = (key_node, value_node)
        return {**merged, **own}

    def _bases(self, node: yaml.Node, path: KeyPath) -> Iterator[yaml.MappingNode]:
        for base in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(base, yaml.MappingNode):
                yield base
            else:
                self.note(path, base, "must merge (<<) a mapping, or a list of mappings.")

    def note(self, path: KeyPath, node: yaml.Node, text: str) -> None:
        """Report what is wrong with a node, once a line."""
        line = node.start_mark.line + 1
        if line not in self._noted:
            self._noted.add(line)
            self._document.issues.append(RecipeIssue(path, text, line))


def _refusal(kind: str, written: str) -> str | None:
    """Why a scalar cannot be taken as what YAML says it is; None where it can."""
    if kind == "str" and any("\ud800" <= letter <= "\udfff" for letter in written):
        return "must be text that UTF-8 can hold, without single surrogates."
    if kind == "int" and len(written) > _LONGEST_INTEGER:
        return "must be a whole number of at most 64 bits."
    sexagesimal = kind == "float" and ":" in written
    if sexagesimal or (kind == "int" and not _INTEGER.fullmatch(written)):
        return "must be a decimal number, as 10 or 0.5; text goes in quotes."
    return None


def _key_text(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        value = shortened(node.value, 40)
        return f"{value}, which YAML does not read as text. Write '{value}' in quotes"
    return "a list or mapping as a key"
