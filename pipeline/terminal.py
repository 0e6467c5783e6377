"""Where a run's progress and verdict are shown."""

import io
import os
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OF_LOGS = 100


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Fall silent where nobody reads any more: the run and its exit code go on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def open_terminal(*, quiet: bool, stderr: bool) -> Console:
    """Open stdout, or stderr, for people.

    Args:
        quiet: Show nothing.
        stderr: Leave stdout to programs.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a run must not fail at a letter in a path
    terminal = _Terminal(quiet=quiet, file=stream)
    if not terminal.is_terminal and "COLUMNS" not in os.environ:
        terminal.width = _WIDTH_OF_LOGS
    return terminal


def plain_table(title: str, *columns: str, style: str = "bold") -> Table:
    """A table with few lines, whose cells are folded where the terminal is too narrow."""
    table = Table(title=title, title_style=style, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """Add cells as they are: brackets in names and patterns are no markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
