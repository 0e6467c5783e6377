"""What the sources of data share in a recipe: ranges of rows, files and their folder."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from mfac_compress.pipeline.files import resolved
from mfac_compress.pipeline.recipe.section import Index, Section, Text
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource

RowRange = tuple[Index, Index]
"""Half-open range `[start, stop]`."""


def backwards(rows: RowRange) -> Iterator[RecipeIssue]:
    """Find a range that ends before it starts."""
    start, stop = rows
    if start >= stop:
        yield RecipeIssue(
            ("rows",), f"must be [start, stop] with start below stop. Got {list(rows)}."
        )


def row_overlaps(ranges: dict[str, RowRange | None], allowed: int) -> Iterator[RecipeIssue]:
    """Find pairs of splits of one file that share more than ``allowed`` samples."""
    everything = (0, float("inf"))
    for (first, one), (second, other) in itertools.combinations(ranges.items(), 2):
        a, b = one or everything, other or everything
        start, stop = max(a[0], b[0]), min(a[1], b[1])
        if stop - start > allowed:
            shared = f"rows {start} to {stop}" if stop < float("inf") else f"rows from {start} on"
            yield RecipeIssue(
                ("splits", second, "rows"),
                f"must not share samples with data.splits.{first}. Got {_rows(other)} against "
                f"{_rows(one)}: {shared} are in both. Move one of the two ranges.",
            )


def _rows(rows: RowRange | None) -> str:
    return "all rows" if rows is None else str(list(rows))


class Rows(Section):
    """A part of the one built-in data set."""

    rows: RowRange
    """Half-open range `[start, stop]` of samples."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        yield from backwards(self.rows)


class FileRows(Section):
    """A file, or a part of it."""

    path: Text
    """Relative to `data.folder`."""
    rows: RowRange | None = None
    """Half-open range `[start, stop]` of samples. Default: all."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        if self.rows is not None:
            yield from backwards(self.rows)


class DataSection(Section):
    """What every data source has."""

    max_overlap: Index = 0
    """Samples that two splits may share (natural duplicates). More is an error; the report says how
    many there are."""


class FilesSection(DataSection):
    """What the sources have that read files."""

    folder: Text = "."
    """Where the paths of `splits` start, seen from the recipe's folder. For data that is elsewhere
    on another machine: `--set data.folder=PATH`."""

    def resolve(self, path: str, recipe_folder: Path) -> Path:
        """Give the absolute path of a path written in `splits`."""
        return resolved(path, resolved(self.folder, recipe_folder))
