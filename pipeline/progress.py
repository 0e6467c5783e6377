"""What the terminal shows while a run goes on: one line a stage."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

T = TypeVar("T")

_LONGEST = 40  # label that leaves the bar, the count and the times on a line of 80
_AVERAGED_SECONDS = 600  # over which the speed is taken: a step may take minutes


class Line:
    """The line of a stage.

    Args:
        name: Of the stage.
        console: Where to write.
        bar: Shows the steps as they go; None where lines cannot be written over.
        verbose: Leave a line for every step.
    """

    def __init__(self, name: str, console: Console, bar: Bar | None, *, verbose: bool) -> None:
        self.reused = False
        """To be set where the result was found rather than made."""
        self._name, self._console, self._bar, self._verbose = name, console, bar, verbose
        self._start = time.perf_counter()
        self._waiting = bar and bar.add_task(name, total=None)
        self._planned = False

    def plan(self, total: int) -> None:
        """Take all that is tracked from here on as one, so that the time left is the stage's."""
        self._planned = True
        if self._bar is not None:
            self._bar.update(self._waiting, total=total, completed=0)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass the items on, with a bar that ticks for each."""
        start = time.perf_counter()
        with self._ticking(label, total) as tick:
            for item in items:
                yield item
                tick()
        if self._verbose:
            self._say(f"  {label}", f"{time.perf_counter() - start:.1f} s", style="dim")

    def step(self, label: str, done: int, total: int) -> None:
        """Show what the stage is at; for work that cannot be passed through :meth:`track`."""
        if self._bar is not None:
            short = label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}"
            self._bar.update(self._waiting, description=short, completed=done, total=total)

    def close(self) -> None:
        """Say how the stage ended."""
        seconds = f"{time.perf_counter() - self._start:.1f} s"
        self._say(self._name, "reused" if self.reused else seconds)

    @contextmanager
    def _ticking(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar in the place of that which only says that the stage is at work."""
        if self._bar is None:
            yield lambda: None
            return
        if self._planned:
            self._bar.update(self._waiting, description=label)
            yield lambda: self._bar.advance(self._waiting)
            return
        self._bar.update(self._waiting, visible=False)
        task = self._bar.add_task(label, total=total)
        yield lambda: self._bar.advance(task)
        self._bar.remove_task(task)
        self._bar.update(self._waiting, visible=True)

    def _say(self, what: str, outcome: str, style: str | None = None) -> None:
        self._console.print(
            f"{what:<24}{outcome:>8}", style=style, markup=False, highlight=False, soft_wrap=True
        )


class Progress:
    """Shows the stages of a run, one after the other.

    While a stage runs, a terminal shows the bar of its present step. What stays, and what a log
    gets, is one line a stage.

    Args:
        console: Where to write; a quiet console shows nothing. Default: nowhere.
        verbose: Also leave a line for each step within the stages.
    """

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        self._console = console or Console(quiet=True)
        self._verbose = verbose
        self._stage: Line | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[Line]:
        """Open the line of a stage; what it tracks meanwhile is shown there."""
        animated = self._console.is_terminal and not self._console.is_dumb_terminal
        bar = _bar(self._console) if animated and not self._console.quiet else None
        self._stage = Line(name, self._console, bar, verbose=self._verbose)
        try:
            with bar or nullcontext():
                yield self._stage
            self._stage.close()
        finally:
            self._stage = None

    def plan(self, total: int) -> None:
        """Say how many items the stage will track in all, over all its loops."""
        if self._stage is not None:
            self._stage.plan(total)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Pass the items on; within a stage, with a bar that ticks for each."""
        return iter(items) if self._stage is None else self._stage.track(items, label, total)

    def step(self, label: str, done: int, total: int) -> None:
        """Show what the stage is at, and how far."""
        self.detail(f"{label} ({done}/{total})")
        if self._stage is not None:
            self._stage.step(label, done, total)

    def warn(self, text: str) -> None:
        """Print a line that everyone should read."""
        self._console.print(f"  {text}", style="yellow", markup=False, highlight=False)

    def detail(self, text: str) -> None:
        """Print a line with `--verbose` only."""
        if self._verbose:
            self._console.print(f"  {text}", style="dim", markup=False, highlight=False)


class _Count(MofNCompleteColumn):
    """``96/128``; empty where the number of steps is not known."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total else Text()


class _TimeLeft(TimeRemainingColumn):
    """``01:20 left``; empty while nothing is known of it."""

    def render(self, task: Task) -> Text:
        known = task.total and task.time_remaining is not None and not task.finished
        return Text(f"{super().render(task)} left", style="dim") if known else Text()


def _bar(console: Console) -> Bar:
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=8),
        _Count(),
        TimeElapsedColumn(),
        _TimeLeft(compact=True),
    )
    return Bar(*columns, console=console, transient=True, speed_estimate_period=_AVERAGED_SECONDS)
