"""What all sections of a recipe share: closed and frozen models, checks across their keys, types
of values."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource, key_name


def _not_a_switch(value: Any) -> Any:
    # Python counts true as 1: `epochs: yes` would train for one epoch.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


# Bounds come before the validator: only so do they reach the JSON Schema under its own words.
NoSwitch = BeforeValidator(_not_a_switch)
Number = Annotated[float, NoSwitch]
Share = Annotated[float, Field(ge=0, lt=1), NoSwitch]
Positive = Annotated[float, Field(gt=0), NoSwitch]
NonNegative = Annotated[float, Field(ge=0), NoSwitch]
Count = Annotated[int, Field(ge=1), NoSwitch]
# Every step is a stage, and the whole list of stages is made before the first one runs.
Steps = Annotated[int, Field(ge=1, le=10_000), NoSwitch]
# Where a thread library cannot make as many as it is asked for it ends the process, and the exit
# codes with it.
MOST_THREADS = 1024
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS), NoSwitch]
Index = Annotated[int, Field(ge=0), NoSwitch]
Seed = Annotated[int, Field(ge=0, lt=2**32), NoSwitch]
Bytes = Annotated[
    ByteSize,
    Field(gt=0),
    NoSwitch,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\s*(\d*\.?\d+)\s*(\w+)?", "examples": ["8GB"]},
                {"type": "integer", "minimum": 1},
            ]
        }
    ),
]
Arguments = dict[str, JsonValue]
"""What YAML and JSON can say, so that a run can be written down and repeated."""


class SectionError(ValueError):
    """The rules that a section breaks, all of them."""

    def __init__(self, issues: tuple[RecipeIssue, ...]) -> None:
        super().__init__(" ".join(f"{key_name(issue.key)} {issue.text}" for issue in issues))
        self.issues = issues


def _without_nul(text: str) -> str:
    # The one character that no path may hold: the system's own error for it names no key.
    if "\0" in text:
        raise SectionError(
            (RecipeIssue((), f"must be text without NUL characters. Got {text[:40]!r}."),)
        )
    return text


_NoNul = AfterValidator(_without_nul)
Text = Annotated[str, Field(min_length=1), _NoNul]
Pattern = Annotated[str, Field(min_length=1, max_length=1000), _NoNul]
CallableName = Annotated[
    str,
    Field(
        pattern=r"^.+:[^\W\d][\w.]*$",
        examples=["package.module:callable", "path/to/file.py:callable"],
    ),
    _NoNul,
]


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        """Find the rules across keys that this section breaks.

        Args:
            source: Origin of the recipe; says where relative paths start.
        Returns:
            The issues, none for a sound section.
        """
        del source
        return iter(())

    @model_validator(mode="after")
    def _is_sound(self, info: ValidationInfo) -> "Section":
        source = info.context if isinstance(info.context, RecipeSource) else RecipeSource()
        found = tuple(self.issues(source))
        if found:
            raise SectionError(found)
        return self


def duplicates(key: str, values: tuple[Any, ...]) -> Iterator[RecipeIssue]:
    """Find values that a list names twice.

    Args:
        key: The list's key in its section.
        values: The list.
    Returns:
        One issue for each repetition.
    """
    for position, value in enumerate(values):
        if value in values[:position]:
            yield RecipeIssue((key, position), f"must not repeat {value!r}. Leave it out.")
