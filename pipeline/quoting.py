"""How messages quote what others wrote: names, errors, tensors.

Such text may be of any length, and hold what a terminal obeys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_MOST_SHOWN = 200
_MOST_LISTED = 10


def printable(text: str) -> str:
    """Escape what would move the cursor, change the terminal or break the line.

    >>> printable("a\\x1b[31m\\n")
    'a\\\\x1b[31m\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 80) -> str:
    """Cut text off after so many characters.

    >>> shortened("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(name: object) -> str:
    """Write a name that others chose on one line and not too long: cut in the middle.

    >>> shown("a\\x1b[31m\\udcff.npz")
    'a\\\\x1b[31m\\\\udcff.npz'
    """
    text = str(name)
    if len(text) > _MOST_SHOWN:
        text = f"{text[: _MOST_SHOWN // 2]}...{text[-_MOST_SHOWN // 2 :]}"
    return printable(text)


def first_line(text: str, most: int = 300) -> str:
    """The first line of an error's text, without the stop at its end: for within a sentence.

    >>> first_line("No such key.\\nDid you mean ...")
    'No such key'
    """
    return (text.splitlines() or [""])[0][:most].rstrip(".: ")


def listed(names: Sequence[str], most: int = _MOST_LISTED, separator: str = ", ") -> str:
    """The first of many names, with a count of the others.

    >>> listed(["a", "b", "c"], most=1)
    'a and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun, such as the name of a type."""
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def type_and_shape(value: Any) -> str:
    """Describe a tensor, an array, or a tree of them; of anything else, say its class.

    >>> type_and_shape({"ids": 3, "pair": ("word", None)})
    'ids: an int, pair: (a str, a NoneType)'
    """
    if isinstance(value, Mapping) and value:
        return ", ".join(f"{shown(name)}: {type_and_shape(part)}" for name, part in value.items())
    if isinstance(value, tuple) and value:
        return f"({', '.join(map(type_and_shape, value))})"
    shape = getattr(value, "shape", None)
    if shape is None:
        return with_article(type(value).__name__)
    return f"{dtype_name(value.dtype)} {list(shape)}"


def dtype_name(dtype: object) -> str:
    """The name of a number type or of a memory layout, of PyTorch or of NumPy."""
    return str(dtype).removeprefix("torch.")
