"""Variables of a recipe: ``${name}`` in a value stands for ``vars.name``. Nothing is evaluated."""

import contextlib
import difflib
import re
from typing import Any

from mfac_compress.pipeline.recipe.source import KeyPath, RecipeIssue
from mfac_compress.pipeline.recipe.yaml_lines import MAX_DEPTH, MAX_TEXT

_REFERENCE = re.compile(r"\$(?P<escaped>\$)?\{((?P<name>[^${}]*)\})?")


class _Broken(Exception):
    """A reference that cannot be filled; without text where that is reported elsewhere."""


class Variables:
    """The variables of one recipe.

    Args:
        definitions: The recipe's ``vars``, as written; they may refer to one another.

    Attributes:
        issues: What could not be filled, collected over all calls.
        unfilled: Keys whose value still holds a reference that has an error.
        used: Names that were asked for.
    """

    def __init__(self, definitions: dict[str, Any]) -> None:
        self.issues: list[RecipeIssue] = []
        self.unfilled: set[KeyPath] = set()
        self.used: set[str] = set()
        self._definitions = definitions
        self._values: dict[str, Any] = {}
        self._broken: set[str] = set()
        self._open: list[str] = []

    def fill(self, value: Any, key: KeyPath) -> Any:
        """Replace references in text, at any depth; keys stay as they are.

        Args:
            value: Plain values.
            key: Key path of ``value``.
        Returns:
            The values. A text that is one ``${name}`` and nothing else takes the variable's own
            type; within other text the variable is written out. ``$${`` gives ``${``.
        """
        if isinstance(value, dict):
            return {part: self.fill(inner, (*key, part)) for part, inner in value.items()}
        if isinstance(value, list):
            return [self.fill(inner, (*key, i)) for i, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        try:
            return self._fill_text(value)
        except _Broken as broken:
            self.unfilled.add(key)
            if str(broken):
                self.issues.append(RecipeIssue(key, str(broken)))
            return value

    def check_all(self) -> None:
        """Fill the variables that nothing has asked for yet, for their issues."""
        for name in self._definitions:
            with contextlib.suppress(_Broken):
                self._value(name)

    def _fill_text(self, text: str) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole and not whole["escaped"]:
            return self._value(_name(whole))
        filled = _REFERENCE.sub(self._written, text)
        if len(filled) > MAX_TEXT:
            raise _Broken(f"must be at most {MAX_TEXT:,} characters once variables are filled.")
        return filled

    def _written(self, reference: re.Match[str]) -> str:
        if reference["escaped"]:
            return reference[0][1:]
        name = _name(reference)
        value = self._value(name)
        if isinstance(value, bool):
            return "true" if value else "false"
        if not isinstance(value, (str, int, float)):
            raise _Broken(
                f"must be text around text or numbers only. Got ${{{name}}}, which is "
                f"{type(value).__name__}. Make it the whole value."
            )
        return str(value)

    def _value(self, name: str) -> Any:
        self.used.add(name)
        if name not in self._definitions:
            raise _Broken(self._unknown(name))
        if name in self._open:
            circle = [*self._open[self._open.index(name) :], name]
            raise _Broken(f"must not refer to itself. Got {' -> '.join(circle)}.")
        if len(self._open) == MAX_DEPTH:
            raise _Broken(f"must not lead through more than {MAX_DEPTH} variables.")
        if name not in self._values:
            before = len(self.unfilled)
            self._open.append(name)
            self._values[name] = self.fill(self._definitions[name], ("vars", name))
            self._open.pop()
            if len(self.unfilled) > before:
                self._broken.add(name)
        if name in self._broken:
            raise _Broken
        return self._values[name]

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._definitions, n=1)
        known = f"vars has {', '.join(self._definitions)}" if self._definitions else "vars is empty"
        advice = (
            f"Did you mean ${{{near[0]}}}?" if near else f"{known}; write $${{ for a plain ${{."
        )
        return f"must use variables that vars defines. Got ${{{name}}}. {advice}"


def _name(reference: re.Match[str]) -> str:
    if reference["name"] is None:
        raise _Broken("must close what ${ opens: ${name}. Write $${ for a plain ${.")
    return reference["name"]
