"""What the keys of modifiers may hold."""

import math
from collections.abc import Callable
from typing import Any

from mfac_compress.pipeline.quoting import shortened

ALL, ALL_PRUNABLE, FROM_PARAM = "__ALL__", "__ALL_PRUNABLE__", "__FROM_PARAM__"
"""SparseML's words for all parameters, all weights of layers, and the sparsity that is there."""

_MOST = 1e6
_MOST_EPOCHS = 10_000
Kind = Callable[[Any], Any]
"""Gives the value as it is meant. Raises ValueError with what it must be."""


def number(value: Any) -> float:
    """A finite number; ``'1e-7'`` in quotes as well, as SparseML takes it."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a number")
    return value


def positive(value: Any) -> float:
    """A number above 0."""
    if not (found := number(value)) > 0:
        raise ValueError("a number above 0")
    return found


def at_least_0(value: Any) -> float:
    """A number from 0."""
    if not (found := number(value)) >= 0:
        raise ValueError("a number of at least 0")
    return found


def epoch(value: Any) -> float:
    """A time or a length in epochs; -1 stands for the first, the last, or each step."""
    found = number(value)
    if not (found == -1 or 0 <= found <= _MOST_EPOCHS):
        raise ValueError(f"a number of epochs, from 0 to {_MOST_EPOCHS:,}, or -1")
    return found


def count(value: Any) -> int:
    """A whole number from 1, also as ``64.0``."""
    found = number(value)
    if found != int(found) or not 1 <= found <= _MOST:
        raise ValueError(f"a whole number of at least 1 and at most {_MOST:g}")
    return int(found)


def count_or_none(value: Any) -> int | None:
    """A whole number from 1, or nothing."""
    return None if value is None or value == "None" else count(value)


def share(value: Any) -> float:
    """A sparsity."""
    if not 0 <= (found := number(value)) < 1:
        raise ValueError("a share of at least 0 and below 1")
    return found


def initial_share(value: Any) -> float | str:
    """A sparsity, or the one that is there."""
    return FROM_PARAM if value == FROM_PARAM else share(value)


def share_or_groups(value: Any) -> float | dict[float, list[str]]:
    """A sparsity, or sparsity -> names of the parameters that it is for."""
    if not isinstance(value, dict):
        return share(value)
    if not value:
        raise ValueError("a share, or at least one share with its list of parameters")
    found = {share(given): names(group) for given, group in value.items()}
    if len(found) < len(value):
        raise ValueError("a mapping in which no share stands twice")
    return found


def counts_by_share(value: Any) -> int | dict[float, int]:
    """A whole number, or sparsity -> whole number from there on; 0 must be one of them."""
    if not isinstance(value, dict):
        return count(value)
    found = {share(given): count(counted) for given, counted in value.items()}
    if 0 not in found:
        raise ValueError("a whole number, or a mapping of shares to them that begins at 0")
    return dict(sorted(found.items()))


def switch(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def names(value: Any) -> list[str]:
    """A list of text, or one text."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise ValueError("a name or a list of names")
    return found


def mask(value: Any) -> str | tuple[int, int]:
    """The name of a pattern of zeros, or the sides of a block."""
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value):
        return value[0], value[1]
    if not isinstance(value, str):
        raise ValueError("a word such as unstructured or block4, or a list of two whole numbers")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A mapping, or nothing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("a mapping")
    return value


def anything(value: Any) -> Any:
    """Whatever it is: it has no effect here."""
    return value


def got(value: Any) -> str:
    """A value as messages show it."""
    return shortened(repr(value), 60)
