"""Time several things against each other, in turn, so that all meet the same load."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

Call = Callable[[], object]
Clock = Literal["thread CPU", "wall"]

_T = TypeVar("_T")
_SHORTEST_RUN_MS = 2.0  # long against the clocks' resolution and the cost of reading them
_TRIALS = 3
_FEWEST_RUNS = 6  # an interval of the median needs as many
_FEWEST_ROUNDS = 10


class Clocks(NamedTuple):
    """Where times are read, in nanoseconds. Simulations have clocks of their own."""

    wall: Callable[[], int] = time.perf_counter_ns
    cpu: Callable[[], int] = time.thread_time_ns
    """CPU time of the calling thread."""


CLOCKS = Clocks()


class Run(NamedTuple):
    """One timed run, in milliseconds a call."""

    wall: float
    cpu: float

    def by(self, clock: Clock) -> float:
        """Its time on one of the clocks."""
        return self.cpu if clock == "thread CPU" else self.wall


@dataclass(frozen=True)
class Timed:
    """What came of timing n things.

    Attributes:
        calls_per_run: Calls timed as one.
        rounds: In each, the runs of each thing. Shape ``[rounds][runs][n]``.
    """

    calls_per_run: int
    rounds: tuple[tuple[tuple[Run, ...], ...], ...]

    @property
    def runs(self) -> list[tuple[Run, ...]]:
        """Those of all rounds. Shape ``[runs][n]``."""
        return [run for timed in self.rounds for run in timed]

    def times(self, clock: Clock) -> list[list[float]]:
        """Milliseconds a call. Shape ``[n][runs]``."""
        return [[run.by(clock) for run in runs] for runs in zip(*self.runs, strict=True)]


def clock_for(threads: int) -> Clock:
    """The clock to compare on.

    At one thread ONNX Runtime computes in the calling thread, whose CPU time other programs do not
    lengthen. At more threads others work too, and wall time alone counts all of it.
    """
    return "thread CPU" if threads == 1 else "wall"


def time_interleaved(
    openers: Sequence[Callable[[], Call]],
    *,
    rounds: int,
    runs: int,
    warmup: int,
    shortest_run_ms: float = _SHORTEST_RUN_MS,
    longest_ms: float = math.inf,
    longest_opening_ms: float = math.inf,
    clocks: Clocks = CLOCKS,
) -> Timed:
    """Time calls in turn, in rounds, for each of which all is opened anew.

    The order of opening turns from round to round, that of calling from run to run, too.

    Args:
        openers: Each opens one thing and returns the call to time.
        rounds: How often all is opened; at most once a run.
        runs: Timed runs of each thing, shared out over the rounds.
        warmup: Untimed calls of each thing, each time it is opened.
        shortest_run_ms: Wall time of a run, at least: shorter calls are repeated within it.
        longest_ms: Wall time of all runs, about. Where calls are too long for it there are fewer
            runs, down to six.
        longest_opening_ms: Wall time of opening and warm-up in all rounds, about. Where they take
            longer there are fewer rounds, down to ten.
        clocks: Where times are read.
    """
    start = clocks.wall()
    calls = _open(openers, warmup, 0)
    opening_ms = max((clocks.wall() - start) / 1e6, 1e-6)
    if rounds * opening_ms > longest_opening_ms:
        rounds = min(rounds, max(_FEWEST_ROUNDS, int(longest_opening_ms / opening_ms)))
    trials = [_time(call, 1, clocks).wall for call in calls for _ in range(_TRIALS)]
    repeats = max(1, math.ceil(shortest_run_ms / max(min(trials), 1e-6)))
    expected_ms = repeats * sum(trials) / _TRIALS
    if runs * expected_ms > longest_ms:
        runs = min(runs, max(_FEWEST_RUNS, int(longest_ms / expected_ms)))
    timed = []
    for number, share in enumerate(np.array_split(range(runs), min(rounds, runs))):
        if number > 0:
            calls.clear()  # closed before others are opened: large models need the memory
            calls = _open(openers, warmup, number)
        # The first run after opening meets cold caches: it is another thing's in the next round.
        turns = range(number, number + len(share))
        timed.append(
            tuple(_in_order(calls, lambda call: _time(call, repeats, clocks), i) for i in turns)
        )
    return Timed(repeats, tuple(timed))


def _open(openers: Iterable[Callable[[], Call]], warmup: int, number: int) -> list[Call]:
    calls = list(_in_order(openers, lambda opener: opener(), number))
    for _ in range(warmup):
        _in_order(calls, lambda call: call(), number)
    return calls


def _in_order(things: Iterable[_T], act: Callable[[_T], object], number: int) -> tuple:
    """Act on all, the last one first if ``number`` is odd. Returns the results in their order."""
    things = list(things)
    if number % 2:
        return tuple(reversed([act(thing) for thing in reversed(things)]))
    return tuple(act(thing) for thing in things)


def _time(call: Call, repeats: int, clocks: Clocks) -> Run:
    """Time some calls as one."""
    cpu, wall = clocks.cpu(), clocks.wall()
    for _ in range(repeats):
        call()
    wall, cpu = clocks.wall() - wall, clocks.cpu() - cpu
    return Run(wall / repeats / 1e6, cpu / repeats / 1e6)
