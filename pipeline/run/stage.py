"""A stage as a value: what it reads, which stages come before it, and its functions.

A stage's key is made of what the stage declares here, so nothing can be forgotten in it: the
stage's function is given what is in the key, and nothing else. Where only a part of what it is
given can change its result, :class:`Keyed` says so in the open.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.run.artefact import Artefact
from mfac_compress.pipeline.run.checkpoint import Checkpoints

Before = Mapping[str, Artefact]


@dataclass(frozen=True)
class Job:
    """What a stage is given to work with, beside what it reads.

    Args:
        folder: Where its files go; None in all processes but the first.
        before: The artefacts of earlier stages, by what they are to this one.
        ranks: The processes that run it together.
        progress: Where it shows its steps.
        checkpoints: Where it can go on from after a kill; gone when it is finished.
    """

    folder: Path | None
    before: Before
    ranks: Ranks
    progress: Progress
    checkpoints: Checkpoints


@dataclass(frozen=True)
class Keyed:
    """A value of which only a part, or nothing, can change a stage's result.

    Args:
        value: What the stage is given.
        key: The part of it that can change the result; None where nothing can.
    """

    value: Any
    key: Any


def _nothing(_ranks: Ranks, **_: Any) -> None:
    """Check nothing."""


@dataclass(frozen=True)
class Stage:
    """One step of a run, whose result is an artefact.

    Args:
        name: Its name, by which later stages and the cache know it.
        run: ``run(job, **reads)`` fills the job's folder and returns the facts, of type ``facts``.
        reads: All that the result depends on beside those artefacts.
        after: The earlier stages whose artefacts it is given: their names, by what they are to
            this one.
        check: ``check(ranks, **reads)`` raises for what can be refused before any work.
        facts: Type of what ``run`` returns: a dataclass, or a dict of plain JSON.
        ranks: Whether all processes run it together, or rank 0 alone.
    """

    name: str
    run: Callable[..., Any]
    reads: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    check: Callable[..., None] = _nothing
    facts: type = dict
    ranks: Literal["all", "zero"] = "all"

    @property
    def given(self) -> dict[str, Any]:
        """What ``run`` and ``check`` are given by name."""
        return {
            name: read.value if isinstance(read, Keyed) else read
            for name, read in self.reads.items()
        }

    def unchecked(self) -> "Stage":
        """The stage without its check, which another one makes already."""
        return replace(self, check=_nothing)

    def key(self, before: Before) -> dict[str, Any]:
        """What the result depends on, as plain JSON.

        Args:
            before: The artefacts of the stages in ``after``, by its keys.
        """
        return {
            "reads": {name: digest_of(read) for name, read in self.reads.items()},
            "before": {role: before[role].digest for role in self.after},
        }


def digest_of(value: Any) -> Any:
    """Plain JSON that differs wherever two values of one kind do.

    Raises:
        TypeError: If the value is of a kind whose content is not known.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): digest_of(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [digest_of(part) for part in value]
    return digest_of(_content(value))


def _content(value: Any) -> Any:
    """Simpler values that an object consists of, or a digest that it has."""
    if isinstance(value, Keyed):
        return value.key
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, torch.device):
        return str(value)
    for name in ("digest", "fingerprint"):
        if hasattr(value, name):
            return getattr(value, name)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"A stage must read values with a digest. Got a {type(value).__name__}.")
