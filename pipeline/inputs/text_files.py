"""Rows of text files that nobody vouches for: ``.tsv``, ``.csv``, ``.jsonl``, and these in gzip.

A file may claim to be short and unpack to more than memory holds, or be one line without an end:
lines and files are read up to a bound.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.errors import InputError, in_brief
from mfac_compress.pipeline.files import check_exists, check_regular
from mfac_compress.pipeline.quoting import listed, shown
from mfac_compress.pipeline.recipe.text_schema import text_form

MOST_IN_LINE = 1 << 20
MOST_IN_FILE = 1 << 30
"""Characters."""
_LARGE = 1 << 26
_MOST_PACKED = 100
"""A large file may be packed so many times, and no more: one of 2 MB can claim 2 GB."""

Columns = tuple[int | str, ...]


def read_rows(
    path: Path, columns: Columns, *, header: bool, given: str, key: str
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Read some columns of a file.

    Args:
        path: The file; its name says how it is written.
        columns: Numbers from 0, or names.
        header: Whether the first row has the names.
        given: The path as the recipe writes it.
        key: The key of the split in the recipe, for messages.
    Yields:
        The number of a row from 0 (without the header and empty lines), and what it has in the
        columns.
    Raises:
        InputError: If the file cannot be read, is not text in UTF-8, or a row lacks a column.
    """
    check_exists(path, given, f"{key}.path", "file")
    place = f"{key}.path: {shown(given)}"
    try:
        most = min(MOST_IN_FILE, max(_LARGE, _MOST_PACKED * check_regular(path, f"{key}.path")))
        with _opened(path) as stream:
            records = _records(_lines(stream, place, most), str(text_form(path.name)))
            yield from _chosen(records, columns, header, place)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} must be text in UTF-8. It is not ({in_brief(error)})."
        ) from error
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError) as error:
        raise InputError(f"{place} must be a file that can be read ({in_brief(error)}).") from error


def _opened(path: Path) -> io.TextIOWrapper:
    # Lines end with \n only: other marks of Unicode may stand in a text.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


def _lines(stream: io.TextIOWrapper, place: str, most: int) -> Iterator[str]:
    total = number = 0
    while line := stream.readline(MOST_IN_LINE + 1):
        number, total = number + 1, total + len(line)
        if len(line) > MOST_IN_LINE:
            raise InputError(
                f"{place} must have lines of at most {MOST_IN_LINE:,} characters. Line {number} is "
                "longer."
            )
        if total > most:
            raise InputError(
                f"{place} must have at most {most:,} characters, unpacked. Split it, or unpack it."
            )
        yield line


def _records(lines: Iterator[str], form: str) -> Iterator[list[str] | dict[str, Any]]:
    """What each row holds, by number or by name."""
    if form == "csv":
        yield from (record for record in csv.reader(lines, strict=True) if record)
        return
    for line in lines:
        text = line.rstrip("\r\n")
        if text:
            yield text.split("\t") if form == "tsv" else json.loads(text)


def _chosen(
    records: Iterator[list[str] | dict[str, Any]], columns: Columns, header: bool, place: str
) -> Iterator[tuple[int, tuple[str, ...]]]:
    if header:
        columns = _numbers(next(records, []), columns, place)
    for number, record in enumerate(records):
        yield number, tuple(_cell(record, column, f"Row {number} of {place}") for column in columns)


def _numbers(names: list[str] | dict[str, Any], columns: Columns, place: str) -> Columns:
    """The columns by number, after the names in a header."""
    for column in columns:
        if isinstance(column, str) and list(names).count(column) != 1:
            shown_names = listed([shown(name) for name in names]) or "none"
            raise InputError(
                f"{place} must have one column {shown(column)} in its first row. Got {shown_names}."
            )
    return tuple(c if isinstance(c, int) else list(names).index(c) for c in columns)


def _cell(record: Any, column: int | str, where: str) -> str:
    by_number = isinstance(record, list) and isinstance(column, int)
    if by_number and column < len(record):
        return record[column]
    if by_number:
        raise InputError(f"{where} must have column {column} (from 0). It has {len(record)}.")
    if not isinstance(record, dict) or column not in record:
        found = listed([shown(name) for name in record]) if isinstance(record, dict) else "none"
        raise InputError(f"{where} must be an object with {shown(column)}. It has {found}.")
    value = record[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(
            f"{where} must have text or a number as {shown(column)}. Got a {type(value).__name__}."
        )
    return value if isinstance(value, str) else repr(value)
