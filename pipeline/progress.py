"""What the terminal shows while a run goes on."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

T = TypeVar("T")


class Progress:
    """Progress bars and remarks, on the given console.

    Args:
        console: Where to write; a quiet console shows nothing.
        verbose: Also show remarks.
    """

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        self._console = console or Console(quiet=True)
        self._verbose = verbose

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass the items on, one tick of a bar for each."""
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with RichProgress(*columns, console=self._console) as bars:
            task = bars.add_task(label, total=total)
            for item in items:
                yield item
                bars.advance(task)

    def remark(self, text: str) -> None:
        """Say something that only the curious want to read."""
        if self._verbose:
            self._console.print(text, style="dim", highlight=False)
